"""SQLAlchemy's engines: which ones a handle means, where their URL leads, and who holds their connections."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import URL, Engine, text

from ..dsn import Dsn
from ..errors import SandboxLimit, SettingsError

_PLACE = ("host", "port", "user", "password", "dbname")
TARGET = (
    *_PLACE,
    "hostaddr",
    "database",
    "service",
    "conninfo",
    "dsn",
    "unix_sock",
)  # parameters that say where a connection leads


def engine_of(thing: Any) -> Engine:
    """Return the Engine behind a handle, that of an AsyncEngine or of a sessionmaker included. Raises SettingsError."""
    found = thing
    for _ in range(8):
        if isinstance(found, Engine) and not hasattr(found, "_proxied"):
            break
        kw = getattr(found, "kw", None)  # of a sessionmaker
        ways = [getattr(found, name, None) for name in ("sync_engine", "_proxied", "session_factory", "bind")]
        found = next((way for way in [*ways, kw.get("bind") if isinstance(kw, dict) else None] if way is not None), None)
    if not isinstance(found, Engine):
        raise SettingsError(
            f"bind leads to a {type(thing).__name__}, not to an engine",
            "dbclone gives an application its connections through its Engine.",
            'Name the engine: bind = "app.db:engine", or Flask-SQLAlchemy\'s extension: bind = "app:db".',
        )
    if found.dialect.name != "postgresql":
        raise SettingsError(
            f"bind leads to an engine for {found.dialect.name}",
            "dbclone isolates PostgreSQL.",
            "Create it with a URL that begins with postgresql+psycopg://; dbclone replaces the rest.",
        )
    return found


def engines_of(handle: Any) -> list[Engine]:
    """Return the engines behind a handle that there are already; of Flask-SQLAlchemy those without a bind key."""
    if hasattr(handle, "_app_engines"):
        return [engine_of(engines[None]) for engines in list(handle._app_engines.values()) if None in engines]
    return [engine_of(handle)]


def targets(handle: Any, models: Sequence[Any] = ()) -> list[Any]:
    """Return the engines behind a handle, and those that its own sessions were given instead (`Session(bind=other)`)."""
    found = engines_of(handle)
    for session in _sessions_made_by(handle):
        engine = getattr(session.bind, "engine", session.bind)  # of a Connection
        engine = getattr(engine, "_proxied", engine)
        if isinstance(engine, Engine) and not any(engine is known for known in found):
            found.append(engine_of(engine))
    return found


def _sessions_made_by(handle: Any) -> Iterator[Any]:
    """Yield the sessions that a sessionmaker has made, if the handle is one: each has a class of its own for them."""
    maker = getattr(handle, "session_factory", handle)  # of a scoped session
    kind, orm = getattr(maker, "class_", None), sys.modules.get("sqlalchemy.orm.session")
    if orm is None or not isinstance(kind, type) or not hasattr(maker, "kw"):
        return
    proxied: Any = getattr(kind, "_retrieve_proxy_for_target", None)  # of an AsyncSession
    for session in list(orm._sessions.values()):
        if type(session) is kind or (proxied and type(proxied(session, regenerate=False)) is kind):
            yield session


@contextlib.contextmanager
def notified(handle: Any, take: Callable[[Any], Any]) -> Iterator[None]:
    """Have `take` called for the block with each engine that Flask-SQLAlchemy makes for an application, as soon as it is made."""
    if not hasattr(handle, "_app_engines"):
        yield
        return
    before, make = vars(handle).get("_make_engine"), handle._make_engine

    def making(*arguments: Any, **keywords: Any) -> Any:
        made = make(*arguments, **keywords)
        key = arguments[0] if arguments else keywords.get("bind_key")
        return made if key is not None else take(engine_of(made))

    handle._make_engine = making
    try:
        yield
    finally:
        restored(handle, "_make_engine", before)


def place(engine: Engine) -> tuple[str, str, str] | None:
    """Return host, port and name of the database that an engine's URL leads to; None if it names none."""
    url = engine.url
    if engine.dialect.name != "postgresql" or not url.database:
        return None
    host, port = url.host or url.query.get("host", ""), url.port or url.query.get("port", "")
    return str(host), str(port), url.database


def restored(thing: Any, name: str, before: Any) -> None:
    """Put an instance attribute back, or take it away where there was none."""
    if before is None:
        vars(thing).pop(name, None)
    else:
        setattr(thing, name, before)


def pointed(url: URL, dsn: Dsn) -> URL:
    """Return an engine's URL for another place; the driver and all other parameters stay."""
    host, port = dsn.get("host"), dsn.get("port")
    in_netloc = bool(host) and "," not in host + port and not host.startswith(("/", "@"))
    query = {key: value for key, value in url.query.items() if key not in TARGET}
    query.update({key: value for key, value in dsn.params if key not in _PLACE})
    query.update({"host": host} if host and not in_netloc else {})
    query.update({"port": port} if "," in port else {})
    return URL.create(
        url.drivername,
        dsn.get("user") or None,
        dsn.get("password") or None,
        host if in_netloc else None,
        int(port) if port.isdigit() else None,
        dsn.get("dbname") or None,
        query,
    )


def sessions_of(engine: Engine) -> Iterator[tuple[Any, Any]]:
    """Yield the ORM's sessions that are in a transaction on the engine, each with its connection."""
    orm: Any = sys.modules.get("sqlalchemy.orm.session")
    for session in list(orm._sessions.values()) if orm is not None else []:
        held = getattr(session.get_transaction(), "_connections", {})
        for key, entry in list(held.items()):
            if getattr(key, "_proxied", key) is engine:
                yield session, entry[0]
                break


def idle(engine: Engine) -> None:
    """Let sessions and the pool give up their connections, whatever state they are in.

    An asynchronous engine's can only do so inside an event loop, which has ended when a test has: see `finish`.
    """
    if engine.dialect.is_async:
        return
    for session, _ in sessions_of(engine):
        with contextlib.suppress(Exception):
            session.rollback()
    with contextlib.suppress(Exception):
        engine.pool.dispose()


def finish(connection: Any) -> None:
    """Close a driver's connection at once, also an asynchronous one outside its event loop."""
    with contextlib.suppress(Exception):
        if hasattr(connection, "pgconn"):  # psycopg 3
            connection._closed = True
            connection.pgconn.finish()
        else:
            getattr(connection, "terminate", connection.close)()


def roll_back(session: Any, connection: Any) -> None:
    """End the transaction that a session began before the test, in which nothing was written: what it does next is the test's.

    Raises SandboxLimit if something was written, which the test would not see.
    """
    wrote = None
    with contextlib.suppress(Exception):  # where it failed, it wrote nothing that could stay
        wrote = connection.scalar(text("SELECT txid_current_if_assigned()"))
    if wrote:
        raise SandboxLimit(
            "a Session has written something without committing it, before the test began",
            f"It is {session!r}. Its transaction is on a real connection, and the test is inside another one.",
            "Commit it in its fixture, or write it in a fixture that asks for dbclone_module or dbclone.",
        )
    session.rollback()
