"""psycopg_pool: a ConnectionPool or AsyncConnectionPool is pointed at a clone and hands out
sandboxed connections.

The pool's own machinery stays at work: sizes, waiting, `configure`, `check` and `reset` do what
they do in production.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import psycopg_pool
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import SandboxLimit, SettingsError
from ..process.clock import monotonic
from ..sandbox.psycopg3.connection import Sandboxed
from ..sandbox.session import Session
from ..server.dsn import parse
from . import hooks
from .base import Adapter, Place, Target

__all__ = ["PoolAdapter", "PoolTarget"]
hooks.fit("psycopg_pool")
_TARGET = ("host", "hostaddr", "port", "user", "password", "passfile", "dbname", "service")
#: The private names of psycopg_pool that are used here, which a test holds against the installed
#: version: a pool has no public place where its connections come from.
PRIVATE = {
    **dict.fromkeys(("psycopg_pool.ConnectionPool", "psycopg_pool.AsyncConnectionPool"), (
        "_add_to_pool", "_closed", "_configure", "_connect", "_growing", "_lock", "_nconns",
        "_open", "_opened", "_pool", "_pool_full_event", "_reset", "_reset_connection",
        "_sched_runner", "_start_initial_tasks", "_tasks", "_waiting", "_workers",
    )),
    "psycopg.Connection": ("_pool",),
    "threading.Condition": ("_waiters",),
}  # fmt: skip
_STEP = 0.0002  # seconds between two looks at the workers


def is_async(pool: Any) -> bool:
    """Return whether the pool works in an event loop instead of threads."""
    return inspect.iscoroutinefunction(pool.getconn)


def pause_tasks(pool: Any, timeout: float) -> list[Any]:
    """Take the tasks of an open pool that no worker has begun, and return them when those that have
    been begun are at their end, or after `timeout` seconds."""
    tasks = []
    with contextlib.suppress(queue.Empty, asyncio.QueueEmpty):
        while True:
            tasks.append(pool._tasks.get_nowait())
    _settle(pool, timeout)
    return tasks


def surviving(tasks: list[Any]) -> list[Any]:
    """Return those of the tasks at the end of a sandbox that outlive it: real connections that came
    back to the pool."""
    return [
        task for task in tasks if hasattr(task, "conn") and not isinstance(task.conn, Sandboxed)
    ]


def resume_tasks(pool: Any, tasks: list[Any]) -> None:
    """Give a pool tasks that were taken from it."""
    for task in tasks:
        with contextlib.suppress(
            RuntimeError
        ):  # its event loop has ended, and its workers have with it
            pool._tasks.put_nowait(task)


def _settle(pool: Any, timeout: float) -> None:
    """Wait until the threads that work for the pool have nothing to do.

    An asynchronous pool has none, and its tasks stop only where they wait: for the server, having
    chosen what kind of connection.
    """
    waiting = getattr(getattr(pool._tasks, "not_empty", None), "_waiters", None)
    if waiting is None:
        return
    deadline = monotonic() + timeout
    while (
        len(waiting) < sum(worker.is_alive() for worker in pool._workers) and monotonic() < deadline
    ):
        time.sleep(_STEP)


def unopened_attributes(pool: Any) -> dict[str, Any]:
    """Return the attributes of a pool that has not been opened yet."""
    return {
        "_opened": False,
        "_closed": True,
        "_pool": deque(),
        "_waiting": deque(),
        "_workers": [],
        "_sched_runner": None,
        "_nconns": pool.min_size,
        "_growing": False,
        "_pool_full_event": None,
    }


def cancel(pool: Any) -> None:
    """End the tasks of an asynchronous pool, if their event loop is still there."""
    for task in (*pool._workers, pool._sched_runner):
        with contextlib.suppress(RuntimeError, AttributeError):
            task.cancel()


def guard_add(pool: Any, session: Any = None, aside: Any = None) -> Callable[[Any], Any]:
    """Return the pool's `_add_to_pool` for connections into the sandbox of `session`, or for real
    ones if it is None.

    The others are not handed out: a real one goes `aside`, and one into another sandbox comes too
    late for it.
    """
    kind, waits = type(pool), is_async(pool)

    def add(connection: Any) -> Any:
        sandbox = connection._session if isinstance(connection, Sandboxed) else None
        if sandbox is session:
            return kind._add_to_pool(pool, connection)
        connection._pool = None
        if sandbox is None:
            aside.append(connection)
        return _nothing() if waits else None

    return add


async def _nothing() -> None:
    pass


class PoolAdapter(Adapter):
    """psycopg_pool: a pool is its own handle, and is what connects."""

    def handle(self, thing: Any) -> Any:
        """Return the pool itself."""
        return thing

    def target(self, thing: Any) -> PoolTarget:
        return PoolTarget(thing)


@dataclass
class _Pointed:
    """The attributes that say where a pool led `before`, whether it was `opened`, and those that
    say where it is led `now`."""

    before: dict[str, Any]
    opened: bool
    now: dict[str, Any]


@dataclass
class _Before:
    """What a pool had before it was given a sandbox: its `attributes`, whether it was `opened`, its
    `tasks`; and what tells that the sandbox is `over`."""

    attributes: dict[str, Any]
    opened: bool
    over: threading.Event
    tasks: list[Any]


class PoolTarget(Target):
    """A ConnectionPool or AsyncConnectionPool."""

    _pointed: _Pointed | None = None
    _sandboxed: _Before | None = None

    def place(self) -> Place | None:
        """Return None also if the pool asks for host, port and name each time."""
        pool = self.thing
        found: dict[str, Any] = {}
        with contextlib.suppress(psycopg.Error):
            found.update(conninfo_to_dict(pool.conninfo) if isinstance(pool.conninfo, str) else {})
        found.update(pool.kwargs if isinstance(pool.kwargs, dict) else {})
        if not found.get("dbname"):
            return None
        return str(found.get("host") or ""), str(found.get("port") or ""), str(found["dbname"])

    def point_at(self, url: str) -> None:
        """A pool that is open is opened anew, and afterwards makes its first connection when one is
        wanted. A `conninfo` that is called for each connection is not called, and its other
        parameters are lost."""
        pool, before = self.thing, self._pointed
        opened = not pool.closed
        if opened and is_async(pool) and before is None and not _in_loop():
            raise SettingsError(
                "the pool that bind names is open already",
                "Its connections belong to an event loop, and lead to another database than the"
                " tests'.",
                "Make it with open=False, and open it where the application starts.",
            )
        kept = {} if callable(pool.conninfo) else conninfo_to_dict(pool.conninfo or "")
        kept = {name: value for name, value in kept.items() if name not in _TARGET}
        now = {
            "conninfo": make_conninfo("", **{**kept, **parse(url).kwargs}),
            "kwargs": _without_target(pool.kwargs),
        }
        if before is None:
            was = {"conninfo": pool.conninfo, "kwargs": pool.kwargs}
            self._pointed = _Pointed(was, opened, now)
            pool._add_to_pool = guard_add(pool)
        else:
            self._pointed = replace(before, now=now)
        vars(pool).update(now)
        try:
            if opened and not _is_sandboxed(pool):
                _stop(pool)
                _open(pool)
                if not is_async(pool):
                    _wait(pool)
        except BaseException:
            if before is None:
                self.point_back()
            raise

    def point_back(self) -> None:
        """It is opened if it was."""
        pool, before = self.thing, self._pointed
        assert before is not None
        self._pointed = None
        _stop(pool)
        vars(pool).update(before.before)
        vars(pool).pop("_add_to_pool", None)
        if before.opened and (not is_async(pool) or _in_loop()):
            _restart(pool)

    def strayed(self) -> bool:
        """By other parameters."""
        assert self._pointed is not None
        pool = self.thing
        return any(getattr(pool, name) is not value for name, value in self._pointed.now.items())

    def close(self) -> None:
        """Also the connections that the pool is about to make."""
        if self.thing.closed or is_async(self.thing):
            _drop(self.thing)
        else:
            _restart(self.thing)

    def unsupported_reason(self) -> str:
        """Its connections are not psycopg's."""
        base = self.thing.connection_class
        if isinstance(base, type) and issubclass(
            base, (psycopg.Connection, psycopg.AsyncConnection)
        ):
            return ""
        return f"connections of the class {getattr(base, '__name__', base)!r} cannot be sandboxed"

    def sandbox(self, session: Session) -> None:
        """Let the pool hand out sandboxed connections; its own wait aside."""
        pool = self.thing
        if reason := self.unsupported_reason():
            raise SandboxLimit(
                "this project's pool cannot be isolated by rollback",
                f"{reason[0].upper()}{reason[1:]}.",
                "Use a connection_class derived from psycopg.Connection or"
                ' psycopg.AsyncConnection, or set reset = "truncate".',
            )
        opened = not pool.closed
        over, tasks = threading.Event(), pause_tasks(pool, 1.0) if opened else []
        before = self._sandboxed = _Before(dict(vars(pool)), opened, over, tasks)
        vars(pool).update(_patches(pool, session, before.attributes["_pool"], over))
        if opened:
            pool._pool, pool._waiting, pool._growing = deque(), deque(), False
            pool._nconns = pool.min_size
            pool._start_initial_tasks()

    def unsandbox(self) -> None:
        """Afterwards the pool is as it was, opened or not, whatever the application did to it in
        the meantime."""
        pool, before = self.thing, self._sandboxed
        assert before is not None
        self._sandboxed = None
        before.over.set()
        was, tasks = before.attributes, before.tasks
        if not before.opened:
            _stop(pool)
            was = {**was, **unopened_attributes(pool)}
        elif pool.closed:
            # By the application: its workers have ended, so what comes back is not open either.
            vars(pool).update(was)
            _drop(pool)
            was = {**was, **unopened_attributes(pool)}
        else:
            tasks += surviving(pause_tasks(pool, 0.05))
        was.update(
            {name: getattr(pool, name) for name in ("conninfo", "kwargs")}
        )  # they may have been led anew
        for name in set(vars(pool)) - set(was):
            delattr(pool, name)
        vars(pool).update(was)
        if not pool.closed:
            resume_tasks(pool, tasks)

    def connection_parameters(self) -> dict[str, str]:
        pool = self.thing
        kwargs = pool.kwargs if isinstance(pool.kwargs, dict) else {}
        found = kwargs.get("options") or (
            conninfo_to_dict(pool.conninfo).get("options")
            if isinstance(pool.conninfo, str)
            else None
        )
        return {"options": str(found)} if found else {}

    def login(self) -> tuple[str, str]:
        """Empty also if its parameters are asked for anew for each connection."""
        pool = self.thing
        found: dict[str, Any] = (
            conninfo_to_dict(pool.conninfo) if isinstance(pool.conninfo, str) else {}
        )
        found |= pool.kwargs if isinstance(pool.kwargs, dict) else {}
        return str(found.get("user") or ""), str(found.get("password") or "")


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_sandboxed(pool: Any) -> bool:
    """Return whether the pool hands out connections into a sandbox, wherever its parameters lead."""
    return "putconn" in vars(pool)


def _without_target(kwargs: Any) -> Any:
    """Return the keyword arguments of a pool's connections, or what is called for them, without
    where to connect."""
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
    vars(pool).update(unopened_attributes(pool))


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
    _open(pool)


def _open(pool: Any) -> None:
    """Open a pool as its `open` does, which for an asynchronous one is a coroutine, and is a door."""
    with contextlib.nullcontext() if is_async(pool) else pool._lock:
        pool._open()


def _patches(pool: Any, session: Session, aside: Any, over: threading.Event) -> dict[str, Any]:
    """Return the attributes that make a pool hand out connections into `session`; real ones that
    come back go to `aside`."""
    kind, reset, configure = type(pool), pool._reset, pool._configure
    return {
        "connection_class": session.connection_class(pool.connection_class),
        "_add_to_pool": guard_add(pool, session, aside),
        "_reset_connection": lambda connection: kind._reset_connection(pool, _Returned(connection)),
        "_reset": (lambda returned: reset(returned.connection)) if reset else None,
        "_configure": None,
        "_connect": _configuring(kind._connect.__get__(pool), configure, over),
        "putconn": _returning(pool),
    }


def _returning(pool: Any) -> Callable[[Any], Any]:
    """Return the pool's `putconn` after a rollback, for which the pool would use a thread or task
    of its own: until then it would keep others from going on in the one session."""
    kind = type(pool)

    def left_open(connection: Any) -> bool:
        mine = isinstance(connection, Sandboxed) and getattr(connection, "_pool", None) is pool
        return mine and connection.status in (
            psycopg.pq.TransactionStatus.INTRANS,
            psycopg.pq.TransactionStatus.INERROR,
        )

    async def put(connection: Any) -> None:
        if left_open(connection):
            await connection.rollback()
        await kind.putconn(pool, connection)

    def put_here(connection: Any) -> None:
        if left_open(connection):
            connection.rollback()
        kind.putconn(pool, connection)

    return put if is_async(pool) else put_here


def _configuring(
    connect: Callable[..., Any], configure: Any, over: threading.Event
) -> Callable[..., Any]:
    """Return the pool's `connect` followed by the application's `configure`, which must leave no
    transaction open.

    A connection that fails because the test is `over` is not tried again, which would make a real
    one too many.
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
        raise psycopg.ProgrammingError(
            f"connection left in status {connection.status.name} by configure function: discarded"
        )


class _Returned:
    """A connection as the pool looks at it when it comes back: with the transaction status that the
    application believes in."""

    def __init__(self, connection: Sandboxed) -> None:
        self.__dict__["connection"] = connection

    @property
    def pgconn(self) -> Any:
        return self.connection.seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["connection"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.connection, name, value)
