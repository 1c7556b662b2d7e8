"""peewee: models become a schema, a Database, pool, Proxy or FlaskDB is pointed at a clone and given sandboxed connections."""

from __future__ import annotations

import contextlib
import functools
import inspect
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import peewee

from ..dsn import parse
from ..errors import SandboxLimit, SettingsError
from ..forks import Home
from ..reset.sandbox import Session
from ..schema import Schema
from ..settings import Settings
from .peewee_schema import PeeweeSchema, models_of, open_database

__all__ = ["bound", "closed", "handle", "lent", "login", "parameters", "refusal", "schema", "with_test_db"]
_TARGET = ("host", "hostaddr", "port", "user", "password", "dbname", "database", "service", "conninfo")
F = TypeVar("F", bound=Callable[..., Any])


def schema(settings: Settings, spec: str, thing: Any) -> Schema:
    """Return the schema of peewee models."""
    strangers = [
        item
        for item in (thing if isinstance(thing, (list, tuple, set)) else [])
        if not (isinstance(item, type) and issubclass(item, peewee.Model))
    ]
    if strangers:
        raise settings.error("schema", f"{strangers[0]!r} in {spec} is not a peewee model", "List models only.")
    models = models_of(thing)
    if not models:
        raise settings.error(
            "schema", f"there are no peewee models in {spec}", "Name a list of models, or a module that defines them."
        )
    return PeeweeSchema(tuple(models))


def handle(thing: Any) -> Any:
    """Return the database handle that models use, or None if they have none."""
    databases = {id(m._meta.database): m._meta.database for m in models_of(thing) if m._meta.database is not None}
    return next(iter(databases.values()), None)


def _database(handle: Any) -> Any:
    """Return the Database behind a handle: a Proxy's object, a FlaskDB's database; None if it has none yet."""
    if isinstance(handle, peewee.Proxy):
        return _database(handle.obj) if handle.obj is not None else None
    if not isinstance(handle, peewee.Database) and hasattr(handle, "database"):
        return _database(handle.database)
    if handle is not None and not isinstance(handle, peewee.PostgresqlDatabase):
        raise SettingsError(
            f"bind leads to a {type(handle).__name__}, not to a PostgreSQL database",
            "dbclone isolates PostgreSQL.",
            "Name the PostgresqlDatabase.",
        )
    return handle


def _is_psycopg3(database: Any) -> bool:
    adapter = getattr(database, "_adapter", None)
    if adapter is not None:
        return hasattr(peewee, "Psycopg3Adapter") and isinstance(adapter, peewee.Psycopg3Adapter)
    return any(base.__name__ == "Psycopg3Database" for base in type(database).__mro__)


@contextlib.contextmanager
def bound(handle: Any, url: str) -> Iterator[None]:
    """Point `handle` at `url` for the block; host, user and database change, all other connection parameters stay."""
    dsn = parse(url)
    target = {k: (int(v) if k == "port" else v) for k, v in dsn.kwargs.items() if k != "dbname"}
    database, home = _database(handle), Home()
    if database is None:
        proxy = handle if isinstance(handle, peewee.Proxy) else handle.database
        fresh = open_database(url)
        proxy.initialize(fresh)
        try:
            yield
        finally:
            if not home.left:
                closed(fresh)
            proxy.initialize(None)
        return
    closed(database)
    before = {
        name: getattr(database, name)
        for name in ("database", "connect_params", "deferred", "server_version")
        if hasattr(database, name)
    }
    kept = {k: v for k, v in (database.connect_params or {}).items() if k not in _TARGET}
    prefer = {"prefer_psycopg3": True} if hasattr(database, "_adapter") and _is_psycopg3(database) else {}
    same = {
        name: getattr(database, f"_{name}")
        for name in ("encoding", "isolation_level")
        if getattr(database, f"_{name}", None) is not None
    }
    # init() updates the dictionary of parameters in place: it must not be the one that comes back.
    database.connect_params = {}
    database.init(dsn.get("dbname"), **{**kept, **target, **prefer, **same})
    try:
        yield
    finally:
        if not home.left:
            closed(database)
        for name, value in before.items():
            setattr(database, name, value)


def closed(handle: Any) -> None:
    """Close the connections of this thread and of the pool, whatever state they are in."""
    database = _database(handle)
    if database is None or database.deferred:
        return
    with contextlib.suppress(Exception):
        if not database.is_closed():
            while database.transaction_depth():
                database.pop_transaction()
            database.close()
    if hasattr(database, "close_all"):
        with contextlib.suppress(Exception):
            database.close_all()


def parameters(handle: Any) -> dict[str, str]:
    """Return the `options` that the application's connections begin with, if there are any."""
    found = getattr(_database(handle), "connect_params", None) or {}
    return {"options": found["options"]} if found.get("options") else {}


def login(handle: Any) -> tuple[str, str]:
    """Return (user, password) of the handle's parameters, or of the URL that stands in the place of the database's name."""
    database = _database(handle)
    found = dict(getattr(database, "connect_params", None) or {})
    with contextlib.suppress(SettingsError):
        name = getattr(database, "database", None)
        found = {**(parse(name).kwargs if isinstance(name, str) and ("://" in name or "=" in name) else {}), **found}
    return str(found.get("user") or ""), str(found.get("password") or "")


def refusal(handle: Any) -> str:
    """Return why this handle cannot be sandboxed: it speaks asyncpg, or psycopg2 where no local sockets can lead it elsewhere."""
    database = _database(handle)
    if database is not None and any(base.__module__ == "playhouse.pwasyncio" for base in type(database).__mro__):
        return f"{type(database).__name__} connects with asyncpg, and only psycopg's connections can be sandboxed"
    if database is None or _is_psycopg3(database) or hasattr(socket, "AF_UNIX"):
        return ""
    return f"{type(database).__name__} connects with psycopg2, which can be sandboxed only where there are Unix sockets"


@contextlib.contextmanager
def lent(handle: Any, session: Session) -> Iterator[None]:
    """Give `handle` sandboxed connections for the block, in every thread; its own connections wait and come back afterwards."""
    if reason := refusal(handle):
        raise SandboxLimit(
            "this project's peewee handle cannot be isolated by rollback",
            f"{reason}.",
            'Write PostgresqlDatabase(…, prefer_psycopg3=True), which peewee 4 knows, or set reset = "truncate".',
        )
    database = _database(handle)
    state = database._state
    names = ("closed", "conn", "ctx", "transactions", "commit_callbacks")
    before = {name: getattr(state, name) for name in names if hasattr(state, name)}
    pool = {name: getattr(database, name) for name in ("_connections", "_in_use") if hasattr(database, name)}
    state.reset()
    for name, value in pool.items():
        setattr(database, name, type(value)())
    try:
        with _led(database, session) if _is_psycopg3(database) else _led_psycopg2(database, session):
            if not before["closed"]:
                database.connect()
            yield
    finally:
        for name, value in pool.items():
            setattr(database, name, value)
        state.reset()
        for name, value in before.items():
            setattr(state, name, value)


@contextlib.contextmanager
def _led(database: Any, session: Session) -> Iterator[None]:
    """Have peewee open its psycopg connections in the sandbox."""
    place = database._adapter if hasattr(database, "_adapter") else database
    patches: dict[str, Any] = {"_connect": lambda: session.connect(autocommit=True)}
    if place is not database:
        patches = {
            "connect": lambda _, **options: session.connect(**options),
            "txn_status": lambda connection: connection.info.transaction_status,
        }
    for name, value in patches.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name in patches:
            delattr(place, name)


@contextlib.contextmanager
def _led_psycopg2(database: Any, session: Session) -> Iterator[None]:
    """Have peewee open its psycopg2 connections as it always does, of a class that leads into the sandbox."""
    from ..reset.psycopg2_sandbox import Gate

    before = database.connect_params
    with Gate(session) as gate:
        database.connect_params = {**before, "connection_factory": gate.factory(before.get("connection_factory"))}
        try:
            yield
        finally:
            database.connect_params = before


@contextlib.contextmanager
def _usable(given: Any) -> Iterator[Any]:
    """Yield a Database that leads into the isolation `given`: the application's own, or one made for the block."""
    database = _database(given.handle) if given.handle is not None else None
    if database is not None:
        yield database
        return
    database = open_database(given.url)
    with given.lend(database):
        try:
            yield database
        finally:
            closed(database)


def with_test_db(models: Iterable[type[peewee.Model]]) -> Callable[[F], F]:
    """Decorate a test so that `models` live in the worker's clone for the call: from an empty state, back to it afterwards.

    The drop-in for decorators that create and drop tables. Works on functions, methods and coroutines; arguments, fixtures and the
    return value go through. Arguments: `models`, as the old decorator took them. pytest hands the clone to the wrapper through the
    `dbclone` fixture, which the test need not mention.
    """
    wanted = tuple(models)

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        asks = "dbclone" in signature.parameters

        @contextlib.contextmanager
        def prepared(keywords: dict[str, Any]) -> Iterator[None]:
            given = keywords.get("dbclone") if asks else keywords.pop("dbclone", None)
            if given is None:
                raise SettingsError(
                    f"with_test_db on {function.__qualname__}: there is no clone to bind to",
                    "The decorated function was called without pytest, or by a runner that hands no fixtures to it.",
                    "Run it with pytest, or pass dbclone=… (what Clone.isolated() yields).",
                )
            with _usable(given) as database, database.bind_ctx(wanted):
                yield

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*arguments: Any, **keywords: Any) -> Any:
                with prepared(keywords):
                    return await function(*arguments, **keywords)
        else:

            @functools.wraps(function)
            def wrapper(*arguments: Any, **keywords: Any) -> Any:
                with prepared(keywords):
                    return function(*arguments, **keywords)

        if not asks:
            extra = inspect.Parameter("dbclone", inspect.Parameter.KEYWORD_ONLY, default=inspect.Parameter.empty)
            positional = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
            tail = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
            wrapper.__signature__ = signature.replace(parameters=[*positional, extra, *tail])  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate
