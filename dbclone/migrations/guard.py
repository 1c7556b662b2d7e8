"""Which database the connections of a migration tool's process reach: the one being built, and no other.

A project names its database in an ini file, in settings, in code, in a `.env` file that overrides the environment. What counts is
where connections are opened. What a tool migrates is led: SQLAlchemy's engines, Django's `default`. Beneath, nothing passes the
drivers psycopg, psycopg2 and asyncpg but what leads to the database being built; everything else is refused by name before it
connects.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..dsn import Dsn
from ..errors import BuildFailed

_SECURITY = ("passfile", "servicefile", "ssl", "direct_tls", "gsslib", "requiressl", "channel_binding", "target_session_attrs",
             "require_auth", "krbsrvname", "load_balance_hosts")  # fmt: skip


class Guard:
    """What may connect where. Arguments: `dsn`, the database being built, which alone has its name."""

    def __init__(self, dsn: Dsn) -> None:
        self.dsn = dsn
        self._place: tuple[str, ...] | None = None  # what the first engine wanted

    def refusal(self, what: str, wanted: Mapping[str, Any], hint: str = "") -> BuildFailed:
        """Return the error for `what`, which wants to connect to another database."""
        name, host = wanted.get("dbname") or "", wanted.get("host") or wanted.get("hostaddr") or ""
        at = f" on {host}" + (f", port {wanted['port']}" if wanted.get("port") else "") if host else ""
        target = f'database "{name}"{at}' if name else f"a database{at}"
        return BuildFailed(
            f"{what} would connect to {target}, which is not the one being built",
            "Nothing was connected to. A schema is built in a database of its own, and may write to no other.",
            hint or "Take the URL from the environment variable DATABASE_URL, or from sqlalchemy.url in alembic.ini.",
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
            known = {key: value for key, value in given.items() if key in _libpq_words()}
            return conninfo_to_dict(conninfo or "", **known)

        kinds: tuple[Any, ...] = (psycopg.Connection, psycopg.AsyncConnection)
        for kind in kinds:
            kind.connect = classmethod(self._checked("psycopg", vars(kind)["connect"].__func__, lambda _, *a, **k: plain(*a, **k)))
        psycopg.connect = psycopg.Connection.connect
        if module := _module("psycopg2"):
            module.connect = self._checked(
                "psycopg2",
                module.connect,
                lambda dsn=None, *_, **given: {**plain(dsn, **given), **_texts(given, "database")},
            )
        if module := _module("asyncpg"):
            module.connect = module.connection.connect = self._checked(
                "asyncpg", module.connect, lambda dsn=None, **given: {**plain(dsn), **{k: v for k, v in given.items() if v}}
            )

    def _checked(self, driver: str, connect: Callable[..., Any], wanted: Callable[..., Mapping[str, Any]]) -> Callable[..., Any]:
        @functools.wraps(connect)
        def checked(*arguments: Any, **given: Any) -> Any:
            self.check(driver, wanted(*arguments, **given))
            return connect(*arguments, **given)

        return checked

    def lead_engines(self) -> None:
        """Lead every SQLAlchemy engine of this process to the database being built (`DialectEvents.do_connect`, its manual).

        The first that connects says which database is meant, wherever its URL comes from; an engine for another one would mix two
        databases in one, and is refused, as is one that is not PostgreSQL's.
        """
        from sqlalchemy import URL, Engine, event

        from ..adapters.sqlalchemy_engine import TARGET, pointed

        def lead(dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> None:
            wanted = {"dbname": parameters.get("dbname") or parameters.get("database") or "", **_texts(parameters, "host", "port")}
            if dialect.name != "postgresql":
                raise self.refusal(f"an engine for {dialect.name}", {"dbname": wanted["dbname"] or str(*arguments[:1])})
            place = tuple(wanted.get(key, "") for key in ("dbname", "host", "port"))
            if self._place is None:
                self._place = place
            elif place != self._place and wanted["dbname"] != self.dsn.get("dbname"):
                hint = f'The first one is for "{self._place[0]}", and a template holds one database. Let env.py migrate that alone.'
                raise self.refusal("a second engine", wanted, hint)
            url = pointed(URL.create(f"postgresql+{dialect.driver}"), self.dsn)
            own_arguments, own = dialect.create_connect_args(url)
            arguments[:] = own_arguments
            for key in [k for k in parameters if k in TARGET or k in _SECURITY or k.startswith(("ssl", "gss"))]:
                del parameters[key]
            parameters.update(own)

        event.listen(Engine, "do_connect", lead)

    def lead_django(self) -> None:
        """Lead Django's database `default` to the one being built, and refuse every other alias by its name.

        Before applications are loaded, so that what they read in the settings is right too; and again where a connection is opened
        (`BaseDatabaseWrapper.connect`, django/db/backends/base/base.py), whatever the settings have become.
        """
        import django
        from django.conf import settings
        from django.db.backends.base.base import BaseDatabaseWrapper

        setup, connect = django.setup, BaseDatabaseWrapper.connect

        @functools.wraps(setup)
        def led_setup(*arguments: Any, **options: Any) -> Any:
            if "default" in settings.DATABASES:
                self._lead_alias(settings.DATABASES["default"])
            return setup(*arguments, **options)

        @functools.wraps(connect)
        def led_connect(wrapper: Any) -> Any:
            alias, values = wrapper.alias, wrapper.settings_dict
            if alias != "default" or wrapper.vendor != "postgresql":
                wanted = {
                    "dbname": str(values.get("NAME") or ""),
                    **_texts({k.lower(): v for k, v in values.items()}, "host", "port"),
                }
                kind = "" if wrapper.vendor == "postgresql" else f" of {wrapper.vendor}"
                raise self.refusal(
                    f"the alias {alias!r}{kind} of Django's DATABASES", wanted,
                    "dbclone migrates the alias 'default', which has to be PostgreSQL's; let no migration of it use others.",
                )  # fmt: skip
            self._lead_alias(values)
            return connect(wrapper)

        django.setup, BaseDatabaseWrapper.connect = led_setup, led_connect

    def _lead_alias(self, values: dict[str, Any]) -> None:
        given = dict(self.dsn.params)
        for key, name in (("dbname", "NAME"), ("user", "USER"), ("password", "PASSWORD"), ("host", "HOST"), ("port", "PORT")):
            values[name] = given.pop(key, "")
        kept = {k: v for k, v in (values.get("OPTIONS") or {}).items() if k not in _libpq_words() or k in _KEPT}
        values["OPTIONS"] = {**kept, **given}


_KEPT = ("options", "application_name", "client_encoding", "connect_timeout")


@functools.lru_cache(maxsize=1)
def _libpq_words() -> frozenset[str]:
    """Return the names of libpq's parameters."""
    from psycopg.pq import Conninfo

    return frozenset(found.keyword.decode() for found in Conninfo.get_defaults())


def _texts(values: Mapping[str, Any], *keys: str) -> dict[str, str]:
    return {key: str(values[key]) for key in keys if values.get(key)}


def _module(name: str) -> Any:
    """Return a driver's module if it is installed and can be imported."""
    try:
        return importlib.import_module(name) if importlib.util.find_spec(name) else None
    except ImportError:
        return None
