"""SQLAlchemy's engines in the process of a migration tool: all lead to the database being built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Engine, event, make_url

from ...server.dsn import Dsn
from ..sqlalchemy import TARGET, url_at
from .guard import Guard, texts

#: Parameters that say how a connection is proved and ciphered: those of the database that a project
#: names are not the build's.
_SECURITY = (
    "passfile", "servicefile", "direct_tls", "requiressl", "channel_binding",
    "target_session_attrs", "require_auth", "krbsrvname", "load_balance_hosts",
)  # fmt: skip


def lead(guard: Guard) -> None:
    """Lead every engine of this process to the database being built (`DialectEvents.do_connect`,
    SQLAlchemy's manual).

    The first that connects says which database is meant, wherever its URL comes from; an engine for
    another one would mix two databases in one, and is refused, as is one that is not PostgreSQL's.
    """
    first: list[tuple[str, ...]] = []

    def led(dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> None:
        wanted = {
            "dbname": parameters.get("dbname") or parameters.get("database") or "",
            **texts(parameters, "host", "port"),
        }
        if dialect.name != "postgresql":
            raise guard.refusal(
                f"an engine for {dialect.name}", {"dbname": wanted["dbname"] or str(*arguments[:1])}
            )
        place = tuple(wanted.get(key, "") for key in ("dbname", "host", "port"))
        if not first:
            first.append(place)
        if place != first[0] and wanted["dbname"] != guard.dsn.get("dbname"):
            hint = (
                f'The first one is for "{first[0][0]}", and a template holds one database.'
                " Let env.py migrate that alone."
            )
            raise guard.refusal("a second engine", wanted, hint)
        own_arguments, own = dialect.create_connect_args(
            url_at(URL.create(f"postgresql+{dialect.driver}"), guard.dsn)
        )
        arguments[:] = own_arguments
        for key in [
            k for k in parameters if k in TARGET or k in _SECURITY or k.startswith(("ssl", "gss"))
        ]:
            del parameters[key]
        parameters.update(own)

    event.listen(Engine, "do_connect", led)


def url(dsn: Dsn, *named: Callable[[], Any]) -> str:
    """Return a URL for SQLAlchemy.

    Arguments: `named`, what returns the URLs that a project names: the driver is that of the first
    one for PostgreSQL whose driver is installed, else psycopg 3. One that raises names nothing: a
    placeholder, an interpolation that fails.
    """
    wanted = URL.create("postgresql+psycopg")
    for find in named:
        try:
            found = make_url(find())
            if found.get_backend_name() == "postgresql":
                found.get_dialect().import_dbapi()
                wanted = URL.create(found.drivername)
                break
        except Exception:
            continue
    return url_at(wanted, dsn).render_as_string(hide_password=False)
