"""psycopg_pool: a ConnectionPool or AsyncConnectionPool is pointed at a clone and hands out sandboxed connections.

The pool's own machinery stays at work: sizes, waiting, `configure`, `check` and `reset` do what they do in production.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..dsn import parse
from ..errors import SandboxLimit, SettingsError
from ..forks import Home
from ..reset.connections import Sandboxed
from ..reset.sandbox import Session
from ..schema import Schema
from ..settings import Settings
from .psycopg_tasks import adding, cancel, given, is_async, returns, taken, unopened

__all__ = ["bound", "closed", "handle", "lent", "login", "parameters", "refusal", "schema"]
_TARGET = ("host", "hostaddr", "port", "user", "password", "passfile", "dbname", "service")


def schema(settings: Settings, spec: str, thing: Any) -> Schema:
    """Refuse: a pool describes no tables."""
    raise settings.error(
        "schema", f"{spec} is a pool of connections, which is not a schema", "Name SQL files, and the pool in bind."
    )


def handle(thing: Any) -> Any:
    """Return the pool itself."""
    return thing


def refusal(handle: Any) -> str:
    """Return why the pool cannot be lent a sandbox: its connections are not psycopg's."""
    base = handle.connection_class
    if isinstance(base, type) and issubclass(base, (psycopg.Connection, psycopg.AsyncConnection)):
        return ""
    return f"connections of the class {getattr(base, '__name__', base)!r} cannot be sandboxed"


def parameters(handle: Any) -> dict[str, str]:
    """Return the `options` that the pool's connections begin with, if there are any."""
    kwargs = handle.kwargs if isinstance(handle.kwargs, dict) else {}
    found = kwargs.get("options") or (
        conninfo_to_dict(handle.conninfo).get("options") if isinstance(handle.conninfo, str) else None
    )
    return {"options": str(found)} if found else {}


def login(handle: Any) -> tuple[str, str]:
    """Return (user, password) of the pool's parameters, unless they are asked for anew for each connection."""
    found: dict[str, Any] = conninfo_to_dict(handle.conninfo) if isinstance(handle.conninfo, str) else {}
    found |= handle.kwargs if isinstance(handle.kwargs, dict) else {}
    return str(found.get("user") or ""), str(found.get("password") or "")


@contextlib.contextmanager
def bound(handle: Any, url: str) -> Iterator[None]:
    """Point the pool at `url` for the block; host, user and database change, all other connection parameters stay.

    A pool that is open is opened anew, and afterwards makes its first connection when one is wanted. A `conninfo` that is called
    for each connection is not called, and its other parameters are lost.
    """
    before, opened, home = {"conninfo": handle.conninfo, "kwargs": handle.kwargs}, not handle.closed, Home()
    if opened and is_async(handle):
        raise SettingsError(
            "the pool that bind names is open already",
            "Its connections belong to an event loop, and lead to another database than the tests'.",
            "Make it with open=False, and open it where the application starts.",
        )
    kept = {} if callable(handle.conninfo) else conninfo_to_dict(handle.conninfo or "")
    kept = {name: value for name, value in kept.items() if name not in _TARGET}
    handle.conninfo = make_conninfo("", **{**kept, **parse(url).kwargs})
    handle.kwargs, handle._add_to_pool = _without_target(handle.kwargs), adding(handle)
    try:
        if opened:
            _stop(handle)
            handle.open()
            _wait(handle)
        yield
    finally:
        if not home.left:
            _stop(handle)
            vars(handle).update(before)
            vars(handle).pop("_add_to_pool", None)
            if opened:
                _restart(handle)


def _without_target(kwargs: Any) -> Any:
    """Return the keyword arguments of a pool's connections, or what is called for them, without where to connect."""
    if inspect.iscoroutinefunction(kwargs):

        async def asked() -> dict[str, Any]:
            return _without_target(await kwargs())  # type: ignore[no-any-return]

        return asked
    if callable(kwargs):
        return lambda: _without_target(kwargs())
    return {name: value for name, value in (kwargs or {}).items() if name not in _TARGET}


def _wait(pool: Any) -> None:
    """Wait until the pool has its connections: later they would be in the way."""
    try:
        pool.wait(timeout=10.0)
    except psycopg_pool.PoolTimeout as timeout:
        raise SettingsError(
            "the pool that bind names cannot connect to the tests' database",
            f"It has been opened anew, and has no connection after 10 s: {timeout}.",
            "See its kwargs and configure; psycopg.pool logs the reason.",
        ) from timeout


def _stop(pool: Any) -> None:
    """Close a pool, of whatever kind, so that it can be opened again."""
    if not pool.closed and not is_async(pool):
        pool.close()
    if not pool.closed:
        cancel(pool)
        _drop(pool)
    vars(pool).update(unopened(pool))


def closed(handle: Any) -> None:
    """Close the connections that are in the pool, and those that it is about to make; it makes new ones when they are wanted."""
    if handle.closed or is_async(handle):
        _drop(handle)
    else:
        _restart(handle)


def _drop(pool: Any) -> None:
    idle = list(pool._pool)
    pool._pool.clear()
    pool._nconns = max(0, pool._nconns - len(idle))
    for connection in idle:
        connection.pgconn.finish()


def _restart(pool: Any) -> None:
    """Open a pool that can wait anew, without connections."""
    _stop(pool)
    pool._nconns = 0
    pool.open()


@contextlib.contextmanager
def lent(handle: Any, session: Session) -> Iterator[None]:
    """Let the pool hand out sandboxed connections for the block; its own wait aside and come back afterwards.

    Afterwards the pool is as it was, opened or not, whatever the application did to it in the block.
    """
    if reason := refusal(handle):
        raise SandboxLimit(
            "this project's pool cannot be isolated by rollback",
            f"{reason[0].upper()}{reason[1:]}.",
            'Use a connection_class derived from psycopg.Connection or psycopg.AsyncConnection, or set reset = "truncate".',
        )
    opened = not handle.closed
    tasks = taken(handle, 1.0) if opened else []
    before, over = dict(vars(handle)), threading.Event()
    patches = _patches(handle, session, before["_pool"], over)
    vars(handle).update(patches)
    if opened:
        handle._pool, handle._waiting, handle._growing = deque(), deque(), False
        handle._nconns = handle.min_size
        handle._start_initial_tasks()
    try:
        yield
    finally:
        over.set()
        if not opened:
            _stop(handle)
            before = {**before, **unopened(handle)}
        elif handle.closed:  # by the application: its workers have ended, so what comes back is not open either
            vars(handle).update(before)
            _drop(handle)
            before = {**before, **unopened(handle)}
        else:
            tasks += returns(taken(handle, 0.05))
        for name in set(vars(handle)) - set(before):
            delattr(handle, name)
        vars(handle).update(before)
        if not handle.closed:
            given(handle, tasks)


def _patches(pool: Any, session: Session, aside: Any, over: threading.Event) -> dict[str, Any]:
    """Return the attributes that make a pool hand out connections into `session`; real ones that come back go to `aside`."""
    kind, reset, configure = type(pool), pool._reset, pool._configure
    return {
        "connection_class": session.connection_class(pool.connection_class),
        "_add_to_pool": adding(pool, session, aside),
        "_reset_connection": lambda connection: kind._reset_connection(pool, _Returned(connection)),
        "_reset": (lambda returned: reset(returned.connection)) if reset else None,
        "_configure": None,
        "_connect": _configuring(kind._connect.__get__(pool), configure, over),
        "putconn": _returning(pool),
    }


def _returning(pool: Any) -> Callable[[Any], Any]:
    """Return the pool's `putconn` after a rollback, for which the pool would use a thread or task of its own: until then it would
    keep others from going on in the one session."""
    kind = type(pool)

    def left_open(connection: Any) -> bool:
        mine = isinstance(connection, Sandboxed) and getattr(connection, "_pool", None) is pool
        return mine and connection.status in (psycopg.pq.TransactionStatus.INTRANS, psycopg.pq.TransactionStatus.INERROR)

    async def put(connection: Any) -> None:
        if left_open(connection):
            await connection.rollback()
        await kind.putconn(pool, connection)

    def put_here(connection: Any) -> None:
        if left_open(connection):
            connection.rollback()
        kind.putconn(pool, connection)

    return put if is_async(pool) else put_here


def _configuring(connect: Callable[..., Any], configure: Any, over: threading.Event) -> Callable[..., Any]:
    """Return the pool's `connect` followed by the application's `configure`, which must leave no transaction open.

    A connection that fails because the test is `over` is not tried again, which would make a real one too many.
    """

    @contextlib.contextmanager
    def unless_over() -> Iterator[None]:
        try:
            yield
        except psycopg.Error:
            if not over.is_set():
                raise

    async def connected(timeout: float | None = None) -> Any:
        connection = await connect(timeout)
        with unless_over():
            if configure:
                await configure(connection)
            _require_idle(connection)
        return connection

    def connected_here(timeout: float | None = None) -> Any:
        connection = connect(timeout)
        with unless_over():
            if configure:
                configure(connection)
            _require_idle(connection)
        return connection

    return connected if inspect.iscoroutinefunction(connect) else connected_here


def _require_idle(connection: Sandboxed) -> None:
    if connection.status != psycopg.pq.TransactionStatus.IDLE:
        raise psycopg.ProgrammingError(f"connection left in status {connection.status.name} by configure function: discarded")


class _Returned:
    """A connection as the pool looks at it when it comes back: with the transaction status that the application believes in."""

    def __init__(self, connection: Sandboxed) -> None:
        self.__dict__["connection"] = connection

    @property
    def pgconn(self) -> Any:
        return self.connection.seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["connection"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.connection, name, value)
