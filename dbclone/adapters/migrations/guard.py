"""Which database the connections of a migration tool's process reach: the one being built, and no
other.

A project names its database in an ini file, in settings, in code, in a `.env` file that overrides
the environment. What counts is where connections are opened. What a tool migrates is led:
SQLAlchemy's engines (`sqlalchemy`), Django's `default`
(`django`). Beneath, nothing passes the drivers psycopg, psycopg2 and asyncpg
but what leads to the database being built; everything else is refused by name before it connects.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import BuildFailed
from ...server.dsn import Dsn


class Guard:
    """What may connect where. Arguments: `dsn`, the database being built, alone of its name."""

    def __init__(self, dsn: Dsn) -> None:
        self.dsn = dsn

    def refusal(self, what: str, wanted: Mapping[str, Any], hint: str = "") -> BuildFailed:
        """Return the error for `what`, which wants to connect to another database."""
        name, host = wanted.get("dbname") or "", wanted.get("host") or wanted.get("hostaddr") or ""
        at = (
            f" on {host}" + (f", port {wanted['port']}" if wanted.get("port") else "")
            if host
            else ""
        )
        target = f'database "{name}"{at}' if name else f"a database{at}"
        return BuildFailed(
            f"{what} would connect to {target}, which is not the one being built",
            "Nothing was connected to. A schema is built in a database of its own, and may"
            " write to no other.",
            hint
            or "Take the URL from the environment variable DATABASE_URL, or from sqlalchemy.url"
            " in alembic.ini.",
        )

    def check(self, driver: str, wanted: Mapping[str, Any]) -> None:
        """Let a driver connect to the database being built. Raises BuildFailed for any other."""
        name = wanted.get("database") or wanted.get("dbname") or os.environ.get("PGDATABASE", "")
        if name != self.dsn.get("dbname") or wanted.get("service"):
            raise self.refusal(f"a connection of {driver}", {**wanted, "dbname": str(name)})

    def watch_drivers(self) -> None:
        """Refuse what leads elsewhere in each driver that is installed."""
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        def plain(conninfo: str = "", **given: Any) -> Mapping[str, Any]:
            known = {key: value for key, value in given.items() if key in libpq_words()}
            return conninfo_to_dict(conninfo or "", **known)

        kinds: tuple[Any, ...] = (psycopg.Connection, psycopg.AsyncConnection)
        for kind in kinds:
            kind.connect = classmethod(
                self._checked(
                    "psycopg", vars(kind)["connect"].__func__, lambda _, *a, **k: plain(*a, **k)
                )
            )
        psycopg.connect = psycopg.Connection.connect
        if module := _module("psycopg2"):
            module.connect = self._checked(
                "psycopg2",
                module.connect,
                lambda dsn=None, *_, **given: {**plain(dsn, **given), **texts(given, "database")},
            )
        if module := _module("asyncpg"):
            module.connect = module.connection.connect = self._checked(
                "asyncpg",
                module.connect,
                lambda dsn=None, **given: {**plain(dsn), **{k: v for k, v in given.items() if v}},
            )

    def _checked(
        self, driver: str, connect: Callable[..., Any], wanted: Callable[..., Mapping[str, Any]]
    ) -> Callable[..., Any]:
        @functools.wraps(connect)
        def checked(*arguments: Any, **given: Any) -> Any:
            self.check(driver, wanted(*arguments, **given))
            return connect(*arguments, **given)

        return checked


@functools.lru_cache(maxsize=1)
def libpq_words() -> frozenset[str]:
    """Return the names of libpq's parameters."""
    from psycopg.pq import Conninfo

    return frozenset(found.keyword.decode() for found in Conninfo.get_defaults())


def texts(values: Mapping[str, Any], *keys: str) -> dict[str, str]:
    """Return those of some parameters that are given, as text."""
    return {key: str(values[key]) for key in keys if values.get(key)}


def _module(name: str) -> Any:
    """Return a driver's module if it is installed and can be imported."""
    try:
        return importlib.import_module(name) if importlib.util.find_spec(name) else None
    except ImportError:
        return None
