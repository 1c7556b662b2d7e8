"""SQLAlchemy: metadata becomes a schema; an Engine, or what leads to one, is pointed at a clone and given sandboxed connections.

Every connection of an engine passes through two places: its pool's creator, and the `connect` of its dialect, of which each engine
has its own. Both are replaced on the instance, so the engine stays the same object, with its events and options; what listens to
`do_connect` still may change the arguments.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Engine

from .. import doors
from ..dsn import parse
from ..errors import SandboxLimit, SettingsError
from ..reset.sandbox import Session
from ..schema import Schema
from ..settings import Settings
from .sqlalchemy_engine import TARGET, finish, idle, notified, place, pointed, restored, roll_back, sessions_of, targets
from .sqlalchemy_schema import MetadataSchema, metadata_of

__all__ = ["notified", "place", "targets"]
doors.fit("sqlalchemy")


def schema(settings: Settings, spec: str, thing: Any) -> Schema:
    """Return the schema of SQLAlchemy metadata."""
    found = [metadata for metadata in metadata_of(thing) if metadata.tables]
    if not found:
        raise settings.error(
            "schema",
            f"there are no tables in the SQLAlchemy metadata of {spec}",
            "Import the modules that define the models where that metadata is defined, or name a module that imports them.",
        )
    return MetadataSchema(tuple(found))


def handle(thing: Any) -> Any:
    """Return the handle that models use: a Flask-SQLAlchemy extension is its own; metadata knows no engine."""
    return thing if hasattr(thing, "_app_engines") else None


def models(thing: Any) -> Sequence[Any]:
    """Return none: models do not name their engine."""
    return ()


class _Creator:
    """The creator of a pool whose engine leads elsewhere: SQLAlchemy's own, which asks the dialect, or instead of a project's own
    one the dialect itself. It lets nothing pass but what the dialect's `connect` of the moment has opened."""

    def __init__(self, engine: Engine) -> None:
        self.before: Any = engine.pool._creator
        self.opened: set[int] = set()
        self.real: weakref.WeakSet[Any] = weakref.WeakSet()  # the driver's connections to the database that the engine is bound to
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
            "A function that listens to do_connect returned a connection, which cannot be led to the clone.",
            "Let it change the arguments that it is given, and return None.",
        )


def _leading(engine: Engine, connect: Callable[..., Any], real: bool = False) -> Any:
    """Let the engine's connections be opened by `connect`, and remember those that are `real`; return what `dialect.connect` was on
    the instance."""
    if not isinstance(engine.pool._creator, _Creator):
        engine.pool._creator = _Creator(engine)  # type: ignore[assignment]
    creator: Any = engine.pool._creator
    dialect = engine.dialect  # which caches of the ORM hold on to: nothing that it refers to may refer to the engine
    before = vars(dialect).get("connect")

    def recorded(*arguments: Any, **parameters: Any) -> Any:
        made = connect(*arguments, **parameters)
        creator.opened.add(id(made))
        if real:
            creator.real.add(dialect.get_driver_connection(made))
        return made

    dialect.connect = recorded  # type: ignore[method-assign]
    return before


@contextlib.contextmanager
def filled(handle: Any, url: str) -> Iterator[None]:
    """Do nothing: where there is no engine yet, the application makes it, and it is followed."""
    yield


def _close(engine: Engine) -> None:
    """Close the engine's real connections, wherever they are, and give it a new pool."""
    idle(engine)
    for connection in list(getattr(engine.pool._creator, "real", ())):
        finish(connection)
    engine.pool = engine.pool.recreate()


def point(engine: Engine, url: str, before: Any = None) -> Any:
    """Lead an engine to `url`; host, user and database change, all other parameters and the pool's options stay."""
    _close(engine)
    was, dialect = engine.url, engine.dialect
    plain = dialect.connect
    engine.url = pointed(was, parse(url))
    arguments, placed = dialect.create_connect_args(engine.url)

    def connect(*_: Any, **parameters: Any) -> Any:
        return plain(*arguments, **{**{key: value for key, value in parameters.items() if key not in TARGET}, **placed})

    method = _leading(engine, connect, real=True)
    if getattr(dialect, "server_version_info", None) is not None and not dialect.is_async:
        # What it learned of another server or database, such as the number of the type hstore, is not true here.
        with engine.connect() as connection:
            dialect.initialize(connection)
        _close(engine)
    return was, method


def strayed(engine: Engine, before: Any) -> bool:
    """Return False: whatever is done to an engine, its dialect's `connect` leads where it is led."""
    return False


escaped = strayed


def point_back(engine: Engine, before: Any) -> None:
    """Lead an engine back."""
    _close(engine)
    engine.url = before[0]
    restored(engine.dialect, "connect", before[1])
    if isinstance(engine.pool._creator, _Creator):
        engine.pool._creator = engine.pool._creator.before


def closed(engine: Engine) -> None:
    """Close the connections of an engine."""
    _close(engine)


def holds(engine: Engine) -> bool:
    """Return False: whoever has no Session or Connection open asks the engine for one."""
    return False


def aside(engine: Engine) -> None:
    """Roll back what the ORM's sessions have open, so that the next statement asks for a connection."""
    for session, _ in () if engine.dialect.is_async else sessions_of(engine):
        with contextlib.suppress(Exception):
            session.rollback()


def back(engine: Engine, before: Any) -> None:
    """Do nothing: a session goes on with another connection."""


def _asked(engine: Engine) -> dict[str, Any]:
    """Return what the dialect would be asked for by the engine's creator, which must be one that asks it."""
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
        restored(engine.dialect, "connect", before)
    return asked


def parameters(engine: Engine) -> dict[str, str]:
    """Return the `options` that the application's connections begin with, if there are any: what the dialect would be asked for."""
    asked = _asked(engine)
    return {"options": asked["options"]} if asked.get("options") else {}


def login(engine: Engine) -> tuple[str, str]:
    """Return (user, password) of the engine's `connect_args`, or else of its URL. A project's own creator and listeners are not
    asked: they might connect."""
    plain = getattr(engine.pool._creator, "__module__", "") == "sqlalchemy.engine.create" and not engine.dialect._has_events
    asked = _asked(engine) if plain else {}
    user, password = asked.get("user") or engine.url.username, asked.get("password") or engine.url.password
    return str(user or ""), str(password or "")


def refusal(engine: Engine) -> str:
    """Return why an engine cannot be sandboxed: another driver than psycopg 3."""
    if engine.dialect.driver != "psycopg":
        return f"it connects with {engine.dialect.driver}, and only psycopg 3 connections can be sandboxed"
    return ""


def lend(engine: Engine, session: Session, before: Any = None) -> Any:
    """Give an engine sandboxed connections, in every thread; its own pool waits for `take_back`."""
    if reason := refusal(engine):
        raise SandboxLimit(
            "this project's SQLAlchemy engine cannot be isolated by rollback",
            f"{reason[0].upper()}{reason[1:]}.",
            'Create it with a URL that begins with postgresql+psycopg://, or set reset = "truncate".',
        )
    for open_session, connection in sessions_of(engine):
        roll_back(open_session, connection)
    pool = engine.pool
    engine.pool = pool.recreate()
    engine.pool.dispatch = pool.dispatch  # not a copy: what a test listens to stays listened to
    return pool, _leading(engine, _opening(engine, session))


def _opening(engine: Engine, session: Session) -> Callable[..., Any]:
    """Return what opens a connection into the sandbox, as the dialect's `connect` does: for an AsyncEngine in its own wrapper."""
    if not engine.dialect.is_async:
        return lambda *_, **parameters: session.connect(**parameters)

    async def create(*_: Any, **parameters: Any) -> Any:
        return await session.aconnect(**parameters)

    dbapi: Any = engine.dialect.loaded_dbapi
    return lambda *_, **parameters: dbapi.connect(async_creator_fn=create, **parameters)


def take_back(engine: Engine, before: Any) -> None:
    """Let an engine make its own connections again, and give it its pool."""
    idle(engine)
    pool, was = before
    pool.dispatch, engine.pool = engine.pool.dispatch, pool
    restored(engine.dialect, "connect", was)
    if was is None and isinstance(pool._creator, _Creator):
        pool._creator = pool._creator.before
