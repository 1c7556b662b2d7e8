"""peewee: models become a schema, a Database, pool, Proxy or FlaskDB is pointed at a clone and
given sandboxed connections."""

from __future__ import annotations

import contextlib
import functools
import inspect
import socket
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import peewee
from psycopg import sql

from ..errors import BuildFailed, SandboxLimit, SettingsError
from ..sandbox.session import Session
from ..schema.manifest import digest
from ..schema.sources import Progress, Schema
from ..server.dsn import parse, redacting
from ..settings import Settings
from . import hooks


def models_of(thing: Any) -> list[type[peewee.Model]]:
    """Return the models that a list, module, base class or model means, in dependency order."""
    if isinstance(thing, types.ModuleType):
        found = {
            v
            for v in vars(thing).values()
            if isinstance(v, type)
            and issubclass(v, peewee.Model)
            and v.__module__ == thing.__name__
        }
        chosen = {model for model in found if not _is_base(model)}
    elif isinstance(thing, type) and thing.__subclasses__():
        queue, chosen = [thing], set()
        while queue:
            model = queue.pop()
            queue += model.__subclasses__()
            if not _is_base(model):
                chosen.add(model)
    elif isinstance(thing, type):
        chosen = {thing}
    else:
        chosen = set(thing)
    return list(peewee.sort_models(chosen))


def _is_base(model: type[peewee.Model]) -> bool:
    """Whether a class only carries settings for others: it has subclasses and declares nothing but
    the automatic key."""
    return model is peewee.Model or bool(
        model.__subclasses__() and set(model._meta.fields) <= {"id"} and model._meta.auto_increment
    )


def open_database(url: str) -> Any:
    """Return a new peewee database that leads to `url`: over psycopg 3 where peewee knows it (since
    4.0), else over psycopg2."""
    dsn = parse(url)
    arguments: dict[str, Any] = {
        k: (int(v) if k == "port" else v) for k, v in dsn.kwargs.items() if k != "dbname"
    }
    if hasattr(peewee, "Psycopg3Adapter"):
        arguments["prefer_psycopg3"] = True
    return peewee.PostgresqlDatabase(dsn.get("dbname"), **arguments)


@dataclass(frozen=True)
class PeeweeSchema:
    """Tables, indexes, sequences and schemas of models, in dependency order, foreign-key cycles
    last."""

    models: tuple[type[peewee.Model], ...]

    def _deferred(self) -> Iterator[tuple[type[peewee.Model], Any]]:
        for model in self.models:
            for reference in model._meta.refs:
                if getattr(reference, "deferred", False):
                    yield model, reference

    def manifest(self) -> Mapping[str, str]:
        offline = peewee.PostgresqlDatabase(None)
        entries = {"peewee": peewee.__version__}
        with offline.bind_ctx(self.models, bind_refs=False, bind_backrefs=False):
            for model in self.models:
                manager = model._schema
                statements = [repr(manager._create_table(safe=False).query())]
                statements += [repr(index.query()) for index in manager._create_indexes(safe=False)]
                statements += [
                    repr(f.sequence)
                    for f in model._meta.sorted_fields
                    if getattr(f, "sequence", None)
                ]
                statements += [
                    repr(manager._create_foreign_key(f).query())
                    for m, f in self._deferred()
                    if m is model
                ]
                name = f"model {model.__module__}.{model.__qualname__}"
                entries[name] = digest("\n".join([entries.get(name, ""), *statements]).encode())
        return entries

    @redacting
    def build(self, url: str, progress: Progress) -> None:
        database = open_database(url)
        model: Any = None
        with database.bind_ctx(self.models, bind_refs=False, bind_backrefs=False), database:
            try:
                for name in dict.fromkeys(m._meta.schema for m in self.models if m._meta.schema):
                    progress(f"creating schema {name}")
                    database.execute_sql(
                        sql.SQL("CREATE SCHEMA IF NOT EXISTS {}")
                        .format(sql.Identifier(name))
                        .as_string(None)
                    )
                for model in self.models:
                    progress(f"creating table {model._meta.table_name}")
                    model.create_table(safe=False)
                for model, field in self._deferred():
                    progress(f"creating foreign key {model._meta.table_name}.{field.column_name}")
                    model._schema.create_foreign_key(field)
            except peewee.PeeweeException as error:
                where = (
                    f"{model.__module__}.{model.__qualname__}"
                    if model is not None
                    else "the schemas"
                )
                text = str(error).strip() or type(error).__name__
                raise BuildFailed(
                    f"creating {where} failed: {text.splitlines()[0]}",
                    text,
                    "Correct the model; no template was left behind.",
                ) from error


__all__ = ["with_test_db"]
_TARGET = (
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "database",
    "service",
    "conninfo",
    "dsn",
)
hooks.fit("peewee")
hooks.fit("playhouse.pwasyncio")
F = TypeVar("F", bound=Callable[..., Any])


def schema(settings: Settings, spec: str, thing: Any) -> Schema:
    """Return the schema of peewee models."""
    strangers = [
        item
        for item in (thing if isinstance(thing, (list, tuple, set)) else [])
        if not (isinstance(item, type) and issubclass(item, peewee.Model))
    ]
    if strangers:
        raise settings.error(
            "schema", f"{strangers[0]!r} in {spec} is not a peewee model", "List models only."
        )
    models = models_of(thing)
    if not models:
        raise settings.error(
            "schema",
            f"there are no peewee models in {spec}",
            "Name a list of models, or a module that defines them.",
        )
    return PeeweeSchema(tuple(models))


def handle(thing: Any) -> Any:
    """Return the database handle that models use, or None if they have none."""
    databases = {
        id(m._meta.database): m._meta.database
        for m in models_of(thing)
        if m._meta.database is not None
    }
    return next(iter(databases.values()), None)


def models(thing: Any) -> Sequence[Any]:
    """Return the models: each names its database, and may be bound to another one."""
    return models_of(thing)


def targets(handle: Any, models: Sequence[Any]) -> list[Any]:
    """Return the Database behind a handle, and those of models if they are PostgreSQL's.

    Raises SettingsError if the handle leads to something else.
    """
    found = [database for database in [_database(handle)] if database is not None]
    for model in models:
        database = model._meta.database
        while isinstance(database, peewee.Proxy):
            database = database.obj
        if isinstance(database, peewee.PostgresqlDatabase) and not any(
            database is known for known in found
        ):
            found.append(database)
    return found


def _database(handle: Any) -> Any:
    """Return the Database behind a handle: a Proxy's object, a FlaskDB's database; None if it has
    none yet."""
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


def place(target: Any) -> tuple[str, str, str] | None:
    """Return host, port and name of the database that a Database is of; None if it is deferred."""
    name = getattr(target, "database", None)
    if not name or not isinstance(target, peewee.PostgresqlDatabase):
        return None
    if "://" in str(name):
        with contextlib.suppress(Exception):
            dsn = parse(str(name))
            return dsn.get("host"), dsn.get("port"), dsn.get("dbname")
    given = target.connect_params or {}
    return str(given.get("host") or ""), str(given.get("port") or ""), str(name)


def _is_psycopg3(database: Any) -> bool:
    adapter = getattr(database, "_adapter", None)
    if adapter is not None:
        return hasattr(peewee, "Psycopg3Adapter") and isinstance(adapter, peewee.Psycopg3Adapter)
    return any(base.__name__ == "Psycopg3Database" for base in type(database).__mro__)


@contextlib.contextmanager
def filled(handle: Any, url: str) -> Iterator[None]:
    """Put a Database that leads to `url` behind a Proxy or FlaskDB that has none, until the
    application puts its own there."""
    if _database(handle) is not None:
        yield
        return
    proxy, fresh = (
        handle if isinstance(handle, peewee.Proxy) else handle.database,
        open_database(url),
    )
    if (
        proxy is None
    ):  # a FlaskDB that has not seen its application yet: what it makes then is followed
        yield
        return
    while isinstance(proxy.obj, peewee.Proxy):
        proxy = proxy.obj
    proxy.initialize(fresh)
    try:
        yield
    finally:
        if proxy.obj is fresh:
            proxy.initialize(None)


@contextlib.contextmanager
def notified(handle: Any, take: Callable[[Any], Any]) -> Iterator[None]:
    """Do nothing: a Proxy passes a door when it is initialized."""
    yield


@dataclass
class _Pointed:
    """What a Database was `before`, and where it has been led: the `name` of its database, and
    `where` that is."""

    before: dict[str, Any]
    name: str
    where: dict[str, Any]


def point(target: Any, url: str, before: _Pointed | None = None) -> _Pointed:
    """Lead a Database to `url`; host, user and database change, all other connection parameters
    stay."""
    dsn = parse(url)
    where = {k: (int(v) if k == "port" else v) for k, v in dsn.kwargs.items() if k != "dbname"}
    closed(target)
    was = before.before if before is not None else _attributes(target)
    kept = {k: v for k, v in (target.connect_params or {}).items() if k not in _TARGET}
    prefer = (
        {"prefer_psycopg3": True} if hasattr(target, "_adapter") and _is_psycopg3(target) else {}
    )
    same = {
        name: getattr(target, f"_{name}")
        for name in ("encoding", "isolation_level")
        if getattr(target, f"_{name}", None) is not None
    }
    # init() updates the dictionary of parameters in place: it must not be the one that comes back.
    target.connect_params = {}
    target.init(dsn.get("dbname"), **{**kept, **where, **prefer, **same})
    return _Pointed(was, dsn.get("dbname"), where)


def _attributes(target: Any) -> dict[str, Any]:
    names = ("database", "connect_params", "deferred", "server_version")
    return {name: getattr(target, name) for name in names if hasattr(target, name)}


def point_back(target: Any, before: _Pointed) -> None:
    """Lead a Database back."""
    closed(target)
    for name, value in before.before.items():
        setattr(target, name, value)


def strayed(target: Any, before: _Pointed) -> bool:
    """Return whether the application has called `init` since."""
    given = target.connect_params
    return target.database != before.name or any(
        given.get(name) != before.where.get(name) for name in _TARGET
    )


def holds(target: Any) -> bool:
    """Return whether this thread has a connection open, which each statement uses as it is."""
    return not target.is_closed()


def aside(target: Any) -> Any:
    """Put this thread's connection aside, so that the next statement has to connect."""
    return None if target.is_closed() else _State(target)


def back(target: Any, before: Any) -> None:
    """Give this thread its connection again."""
    if before is not None:
        closed(target) if not target.is_closed() else None
        before.restore(target)


class _State:
    """What a thread has open on a Database, taken from it."""

    _NAMES = ("closed", "conn", "ctx", "transactions", "commit_callbacks")

    def __init__(self, database: Any) -> None:
        state = database._state
        self.values = {name: getattr(state, name) for name in self._NAMES if hasattr(state, name)}
        self._thread = threading.get_ident()
        state.reset()

    def restore(self, database: Any) -> None:
        """Give it back, to the thread from which it was taken."""
        state = database._state
        state.reset()
        if threading.get_ident() == self._thread:
            for name, value in self.values.items():
                setattr(state, name, value)


def closed(target: Any) -> None:
    """Close the connections of this thread and of the pool, whatever state they are in."""
    if target.deferred:
        return
    with contextlib.suppress(Exception):
        if not target.is_closed():
            while target.transaction_depth():
                target.pop_transaction()
            target.close()
    if hasattr(target, "close_all"):
        with contextlib.suppress(Exception):
            target.close_all()


def parameters(target: Any) -> dict[str, str]:
    """Return the `options` that the application's connections begin with, if there are any."""
    found = getattr(target, "connect_params", None) or {}
    return {"options": found["options"]} if found.get("options") else {}


def login(target: Any) -> tuple[str, str]:
    """Return (user, password) of the Database's parameters, or of the URL that stands in the place
    of the database's name."""
    found = dict(getattr(target, "connect_params", None) or {})
    with contextlib.suppress(SettingsError):
        name = getattr(target, "database", None)
        found = {
            **(
                parse(name).kwargs
                if isinstance(name, str) and ("://" in name or "=" in name)
                else {}
            ),
            **found,
        }
    return str(found.get("user") or ""), str(found.get("password") or "")


def refusal(target: Any) -> str:
    """Return why this handle cannot be sandboxed: it speaks asyncpg, or psycopg2 where no local
    sockets can lead it elsewhere."""
    if any(base.__module__ == "playhouse.pwasyncio" for base in type(target).__mro__):
        return (
            f"{type(target).__name__} connects with asyncpg,"
            " and only psycopg's connections can be sandboxed"
        )
    if _is_psycopg3(target) or hasattr(socket, "AF_UNIX"):
        return ""
    return (
        f"{type(target).__name__} connects with psycopg2,"
        " which can be sandboxed only where there are Unix sockets"
    )


@dataclass
class _Lent:
    """What a Database had before it was lent a sandbox, and what leads it there."""

    state: _State
    pool: dict[str, Any]
    place: Any
    psycopg3: bool
    leading: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def lend(target: Any, session: Session, before: _Lent | None = None) -> _Lent:
    """Give a Database sandboxed connections, in every thread; its own connections wait for
    `take_back`."""
    if reason := refusal(target):
        raise SandboxLimit(
            "this project's peewee handle cannot be isolated by rollback",
            f"{reason}.",
            "Write PostgresqlDatabase(…, prefer_psycopg3=True), which peewee 4 knows, or set"
            ' reset = "truncate".',
        )
    if before is None:
        pool = {
            name: getattr(target, name)
            for name in ("_connections", "_in_use")
            if hasattr(target, name)
        }
        lent, again = _Lent(_State(target), pool, _door(target), _is_psycopg3(target)), False
        for name, value in pool.items():
            setattr(target, name, type(value)())
    else:
        before.leading.close()
        lent = replace(
            before,
            place=_door(target),
            psycopg3=_is_psycopg3(target),
            leading=contextlib.ExitStack(),
        )
        again = True
    try:
        lent.leading.enter_context(
            _led(target, session) if _is_psycopg3(target) else _led_psycopg2(target, session)
        )
        if not again and not lent.state.values["closed"]:
            target.connect()
    except BaseException:
        take_back(target, lent)
        raise
    return lent


def _door(target: Any) -> Any:
    """Return what opens a Database's connections: peewee 4 asks an adapter, of which `init` makes a
    new one."""
    return getattr(target, "_adapter", target)


def escaped(target: Any, before: _Lent) -> bool:
    """Return whether the application has called `init` since, so that its connections would be real
    ones.

    Those of psycopg2 are still made by the factory among the parameters, which `init` keeps.
    """
    return _door(target) is not before.place and (before.psycopg3 or _is_psycopg3(target))


def take_back(target: Any, before: _Lent) -> None:
    """Let a Database make its own connections again, and give it those that it had."""
    before.leading.close()
    for name, value in before.pool.items():
        setattr(target, name, value)
    before.state.restore(target)


@contextlib.contextmanager
def _led(database: Any, session: Session) -> Iterator[None]:
    """Have peewee open its psycopg connections in the sandbox."""
    place = _door(database)
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
    """Have peewee open its psycopg2 connections as it always does, of a class that leads into the
    sandbox."""
    from ..sandbox.wire.psycopg2 import Connector

    name = "connection_factory"
    before = dict(database.connect_params)
    with Connector(session) as gate:
        database.connect_params = {**before, name: gate.factory(before.get(name))}
        try:
            yield
        finally:  # not all of them: the application may have called init
            rest = {key: value for key, value in database.connect_params.items() if key != name}
            database.connect_params = {**rest, **({name: before[name]} if name in before else {})}


@contextlib.contextmanager
def _usable(given: Any) -> Iterator[Any]:
    """Yield a Database that leads into the isolation `given`: the application's own, or one made
    for the block."""
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
    """Decorate a test so that `models` live in the worker's clone for the call: from an empty
    state, back to it afterwards.

    The drop-in for decorators that create and drop tables. Works on functions, methods and
    coroutines; arguments, fixtures and the return value go through. Arguments: `models`, as the old
    decorator took them. pytest hands the clone to the wrapper through the `dbclone` fixture, which
    the test need not mention.
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
                    "The decorated function was called without pytest, or by a runner that"
                    " hands no fixtures to it.",
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
            extra = inspect.Parameter(
                "dbclone", inspect.Parameter.KEYWORD_ONLY, default=inspect.Parameter.empty
            )
            positional = [
                p
                for p in signature.parameters.values()
                if p.kind is not inspect.Parameter.VAR_KEYWORD
            ]
            tail = [
                p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD
            ]
            wrapper.__signature__ = signature.replace(parameters=[*positional, extra, *tail])  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate
