"""SQLAlchemy: metadata becomes a schema; an Engine, or what leads to one, is pointed at a clone and
given sandboxed connections.

Every connection of an engine passes through two places: its pool's creator, and the `connect` of
its dialect, of which each engine has its own. Both are replaced on the instance, so the engine
stays the same object, with its events and options; what listens to `do_connect` still may change
the arguments.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import URL, Engine, text

from ..errors import SandboxLimit, SettingsError
from ..sandbox.session import Session
from ..schema.sources import Schema
from ..server.dsn import Dsn, parse
from ..settings import Settings
from . import hooks
from .base import Adapter, Place, Target
from .sqlalchemy_schema import MetadataSchema, metadata_of

__all__ = ["EngineTarget", "SQLAlchemyAdapter"]
hooks.fit("sqlalchemy")
#: The private names of SQLAlchemy and Flask-SQLAlchemy that are used here, in `sqlalchemy_schema`
#: and in `hooks`, which a test holds against the installed version.
PRIVATE = {
    "sqlalchemy.pool.Pool": ("_creator",),
    "sqlalchemy.Dialect": ("_has_events",),
    "sqlalchemy.engine.base.OptionEngine": ("_proxied",),
    "sqlalchemy.MetaData": ("_sequences",),
    "sqlalchemy.orm.session": ("_sessions",),
    "sqlalchemy.orm.SessionTransaction": ("_connections",),
    "sqlalchemy.ext.asyncio.AsyncSession": ("_proxied", "_retrieve_proxy_for_target"),
    "flask_sqlalchemy.SQLAlchemy": ("_app_engines", "_make_engine"),
    "psycopg.Connection": ("_closed",),
}
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
    """Return the Engine behind a handle, that of an AsyncEngine or of a sessionmaker included.
    Raises SettingsError."""
    found = thing
    for _ in range(8):
        if isinstance(found, Engine) and not hasattr(found, "_proxied"):
            break
        kw = getattr(found, "kw", None)  # of a sessionmaker
        ways = [
            getattr(found, name, None)
            for name in ("sync_engine", "_proxied", "session_factory", "bind")
        ]
        found = next(
            (
                way
                for way in [*ways, kw.get("bind") if isinstance(kw, dict) else None]
                if way is not None
            ),
            None,
        )
    if not isinstance(found, Engine):
        raise SettingsError(
            f"bind leads to a {type(thing).__name__}, not to an engine",
            "dbclone gives an application its connections through its Engine.",
            'Name the engine: bind = "app.db:engine", or Flask-SQLAlchemy\'s extension: bind'
            ' = "app:db".',
        )
    if found.dialect.name != "postgresql":
        raise SettingsError(
            f"bind leads to an engine for {found.dialect.name}",
            "dbclone isolates PostgreSQL.",
            "Create it with a URL that begins with postgresql+psycopg://; dbclone replaces"
            " the rest.",
        )
    return found


def engines_of(handle: Any) -> list[Engine]:
    """Return the engines behind a handle that there are already; of Flask-SQLAlchemy those without
    a bind key."""
    if hasattr(handle, "_app_engines"):
        return [
            engine_of(engines[None])
            for engines in list(handle._app_engines.values())
            if None in engines
        ]
    maker = getattr(handle, "session_factory", handle)  # of a scoped session
    kw = getattr(maker, "kw", None)
    if isinstance(kw, dict) and kw.get("bind") is None and not kw.get("binds"):
        return []  # a sessionmaker that the application has not configured yet
    return [engine_of(handle)]


def _sessions_made_by(handle: Any) -> Iterator[Any]:
    """Yield the sessions that a sessionmaker has made, if the handle is one: each has a class of
    its own for them."""
    maker = getattr(handle, "session_factory", handle)  # of a scoped session
    kind, orm = getattr(maker, "class_", None), sys.modules.get("sqlalchemy.orm.session")
    if orm is None or not isinstance(kind, type) or not hasattr(maker, "kw"):
        return
    proxied: Any = getattr(kind, "_retrieve_proxy_for_target", None)  # of an AsyncSession
    for session in list(orm._sessions.values()):
        if type(session) is kind or (proxied and type(proxied(session, regenerate=False)) is kind):
            yield session


def restore_attribute(thing: Any, name: str, before: Any) -> None:
    """Put an instance attribute back, or take it away where there was none."""
    if before is None:
        vars(thing).pop(name, None)
    else:
        setattr(thing, name, before)


def url_at(url: URL, dsn: Dsn) -> URL:
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
    """Yield the ORM's sessions in a transaction on the engine, each with its connection."""
    orm: Any = sys.modules.get("sqlalchemy.orm.session")
    for session in list(orm._sessions.values()) if orm is not None else []:
        held = getattr(session.get_transaction(), "_connections", {})
        for key, entry in list(held.items()):
            if getattr(key, "_proxied", key) is engine:
                yield session, entry[0]
                break


def release_connections(engine: Engine) -> None:
    """Let sessions and the pool give up their connections, whatever state they are in.

    An asynchronous engine's can only do so inside an event loop, which has ended when a test has:
    see `finish`.
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
    """End the transaction that a session began before the test, in which nothing was written: what
    it does next is the test's.

    Raises SandboxLimit if something was written, which the test would not see.
    """
    wrote = None
    with contextlib.suppress(Exception):  # where it failed, it wrote nothing that could stay
        wrote = connection.scalar(text("SELECT txid_current_if_assigned()"))
    if wrote:
        raise SandboxLimit(
            "a Session has written something without committing it, before the test began",
            f"It is {session!r}. Its transaction is on a real connection, and the test is"
            f" inside another one.",
            "Commit it in its fixture, or write it in a fixture that asks for dbclone_module"
            " or dbclone.",
        )
    session.rollback()


class _Creator:
    """The creator of a pool whose engine leads elsewhere: SQLAlchemy's own, which asks the dialect,
    or instead of a project's own one the dialect itself. It lets nothing pass but what the
    dialect's `connect` of the moment has opened."""

    def __init__(self, engine: Engine) -> None:
        self.before: Any = engine.pool._creator
        self.opened: set[int] = set()
        self.real: weakref.WeakSet[Any] = (
            weakref.WeakSet()
        )  # the driver's connections to the database that the engine is bound to
        self._engine = weakref.ref(engine)

    def __call__(self, connection_record: Any) -> Any:
        engine = self._engine()
        assert engine is not None
        if getattr(self.before, "__module__", "") == "sqlalchemy.engine.create":
            made = self.before(connection_record)
        else:
            made = engine.dialect.connect(**engine.dialect.create_connect_args(engine.url)[1])
        if id(made) in self.opened:
            self.opened.discard(id(made))
            return made
        with contextlib.suppress(Exception):
            made.close()
        raise SettingsError(
            "an event listener of the engine opens connections of its own",
            "A function that listens to do_connect returned a connection, which cannot be"
            " led to the clone.",
            "Let it change the arguments that it is given, and return None.",
        )


def _leading(engine: Engine, connect: Callable[..., Any], real: bool = False) -> Any:
    """Let the engine's connections be opened by `connect`, and remember those that are `real`;
    return what `dialect.connect` was on the instance."""
    if not isinstance(engine.pool._creator, _Creator):
        engine.pool._creator = _Creator(engine)  # type: ignore[assignment]
    creator: Any = engine.pool._creator
    dialect = (
        engine.dialect
    )  # which caches of the ORM hold on to: nothing that it refers to may refer to the engine
    before = vars(dialect).get("connect")

    def recorded(*arguments: Any, **parameters: Any) -> Any:
        made = connect(*arguments, **parameters)
        creator.opened.add(id(made))
        if real:
            creator.real.add(dialect.get_driver_connection(made))
        return made

    dialect.connect = recorded  # type: ignore[method-assign]
    return before


def _close(engine: Engine) -> None:
    """Close the engine's real connections, wherever they are, and give it a new pool."""
    release_connections(engine)
    for connection in list(getattr(engine.pool._creator, "real", ())):
        finish(connection)
    engine.pool = engine.pool.recreate()


def _requested_parameters(engine: Engine) -> dict[str, Any]:
    """Return what the dialect would be asked for by the engine's creator, which must be one that
    asks it."""
    asked: dict[str, Any] = {}
    before = vars(engine.dialect).get("connect")

    def note(*_: Any, **given: Any) -> Any:
        asked.update(given)
        raise InterruptedError

    engine.dialect.connect = note  # type: ignore[method-assign]
    try:
        with contextlib.suppress(Exception):
            engine.pool._creator(None)  # type: ignore[call-arg, arg-type]
    finally:
        restore_attribute(engine.dialect, "connect", before)
    return asked


def _opening(engine: Engine, session: Session) -> Callable[..., Any]:
    """Return what opens a connection into the sandbox, as the dialect's `connect` does: for an
    AsyncEngine in its own wrapper."""
    if not engine.dialect.is_async:
        return lambda *_, **parameters: session.connect(**parameters)

    async def create(*_: Any, **parameters: Any) -> Any:
        return await session.aconnect(**parameters)

    dbapi: Any = engine.dialect.loaded_dbapi
    return lambda *_, **parameters: dbapi.connect(async_creator_fn=create, **parameters)


class SQLAlchemyAdapter(Adapter):
    """SQLAlchemy, Flask-SQLAlchemy and SQLModel: whatever leads to an Engine is a handle, and
    Engines connect."""

    def schema(self, settings: Settings, spec: str, thing: Any) -> Schema:
        found = [metadata for metadata in metadata_of(thing) if metadata.tables]
        if not found:
            raise settings.error(
                "schema",
                f"there are no tables in the SQLAlchemy metadata of {spec}",
                "Import the modules that define the models where that metadata is defined, or"
                " name a module that imports them.",
            )
        return MetadataSchema(tuple(found))

    def target(self, thing: Any) -> EngineTarget:
        return EngineTarget(thing)

    def handle(self, thing: Any) -> Any:
        """A Flask-SQLAlchemy extension is its own; metadata knows no engine."""
        return thing if hasattr(thing, "_app_engines") else None

    def targets(self, handle: Any, models: Sequence[Any] = ()) -> list[Any]:
        """Return the engines behind a handle, and those that its own sessions were given instead
        (`Session(bind=other)`)."""
        found = engines_of(handle)
        for session in _sessions_made_by(handle):
            engine = getattr(session.bind, "engine", session.bind)  # of a Connection
            engine = getattr(engine, "_proxied", engine)
            if isinstance(engine, Engine) and not any(engine is known for known in found):
                found.append(engine_of(engine))
        return found

    @contextlib.contextmanager
    def watch(self, handle: Any, take: Callable[[Any], Any]) -> Iterator[None]:
        """Flask-SQLAlchemy makes engines for each application."""
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
            restore_attribute(handle, "_make_engine", before)


class EngineTarget(Target):
    """An Engine, that of an AsyncEngine included. It never strays or escapes: whatever is done to
    it, its dialect's `connect` leads where it is led."""

    _pointed: tuple[URL, Any] | None = None
    _sandboxed: tuple[Any, Any] | None = None

    def place(self) -> Place | None:
        """Return what its URL says."""
        url = self.thing.url
        if self.thing.dialect.name != "postgresql" or not url.database:
            return None
        host, port = url.host or url.query.get("host", ""), url.port or url.query.get("port", "")
        return str(host), str(port), url.database

    def point_at(self, url: str) -> None:
        engine = self.thing
        _close(engine)
        was, dialect = engine.url, engine.dialect
        plain = dialect.connect
        engine.url = url_at(was, parse(url))
        arguments, placed = dialect.create_connect_args(engine.url)

        def connect(*_: Any, **parameters: Any) -> Any:
            kept = {key: value for key, value in parameters.items() if key not in TARGET}
            return plain(*arguments, **{**kept, **placed})

        method = _leading(engine, connect, real=True)
        if self._pointed is None:
            self._pointed = was, method
        if getattr(dialect, "server_version_info", None) is not None and not dialect.is_async:
            # What it learned of another server or database, such as the number of the type hstore,
            # is not true here.
            with engine.connect() as connection:
                dialect.initialize(connection)
            _close(engine)

    def point_back(self) -> None:
        engine = self.thing
        assert self._pointed is not None
        _close(engine)
        engine.url, method = self._pointed
        restore_attribute(engine.dialect, "connect", method)
        if isinstance(engine.pool._creator, _Creator):
            engine.pool._creator = engine.pool._creator.before

    def close(self) -> None:
        _close(self.thing)

    def put_aside(self) -> None:
        """Roll back what the ORM's sessions have open, so that the next statement asks for a
        connection; a session goes on with another one."""
        for session, _ in () if self.thing.dialect.is_async else sessions_of(self.thing):
            with contextlib.suppress(Exception):
                session.rollback()

    def unsupported_reason(self) -> str:
        """Another driver than psycopg 3."""
        driver = self.thing.dialect.driver
        if driver != "psycopg":
            return f"it connects with {driver}, and only psycopg 3 connections can be sandboxed"
        return ""

    def sandbox(self, session: Session) -> None:
        """The engine's own pool waits for `unsandbox`."""
        engine = self.thing
        if reason := self.unsupported_reason():
            raise SandboxLimit(
                "this project's SQLAlchemy engine cannot be isolated by rollback",
                f"{reason[0].upper()}{reason[1:]}.",
                "Create it with a URL that begins with postgresql+psycopg://, or set reset ="
                ' "truncate".',
            )
        for open_session, connection in sessions_of(engine):
            roll_back(open_session, connection)
        pool = engine.pool
        engine.pool = pool.recreate()
        engine.pool.dispatch = pool.dispatch  # not a copy: what a test listens to stays listened to
        self._sandboxed = pool, _leading(engine, _opening(engine, session))

    def unsandbox(self) -> None:
        engine = self.thing
        assert self._sandboxed is not None
        release_connections(engine)
        pool, was = self._sandboxed
        self._sandboxed = None
        pool.dispatch, engine.pool = engine.pool.dispatch, pool
        restore_attribute(engine.dialect, "connect", was)
        if was is None and isinstance(pool._creator, _Creator):
            pool._creator = pool._creator.before

    def connection_parameters(self) -> dict[str, str]:
        """What the dialect would be asked for."""
        asked = _requested_parameters(self.thing)
        return {"options": asked["options"]} if asked.get("options") else {}

    def login(self) -> tuple[str, str]:
        """Of the engine's `connect_args`, or else of its URL. A project's own creator and listeners
        are not asked: they might connect."""
        engine = self.thing
        plain = (
            getattr(engine.pool._creator, "__module__", "") == "sqlalchemy.engine.create"
            and not engine.dialect._has_events
        )
        asked = _requested_parameters(engine) if plain else {}
        user, password = (
            asked.get("user") or engine.url.username,
            asked.get("password") or engine.url.password,
        )
        return str(user or ""), str(password or "")
