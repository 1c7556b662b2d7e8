"""What a pool of psycopg_pool does in the background: its workers' tasks, kept apart where a sandbox begins and ends.

A worker asks the pool what to do at the moment it does it. So a task from before a sandbox would make a sandboxed connection, of
which the pool believes afterwards that it is a real one, and waits for it for ever; and the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..clock import monotonic
from ..reset.connections import Sandboxed

__all__ = ["adding", "cancel", "given", "is_async", "returns", "taken", "unopened"]
_STEP = 0.0002  # seconds between two looks at the workers


def is_async(pool: Any) -> bool:
    """Return whether the pool works in an event loop instead of threads."""
    return inspect.iscoroutinefunction(pool.getconn)


def taken(pool: Any, timeout: float) -> list[Any]:
    """Take the tasks of an open pool that no worker has begun, and return them when those that have been begun are at their end, or
    after `timeout` seconds."""
    tasks = []
    with contextlib.suppress(queue.Empty, asyncio.QueueEmpty):
        while True:
            tasks.append(pool._tasks.get_nowait())
    _settle(pool, timeout)
    return tasks


def returns(tasks: list[Any]) -> list[Any]:
    """Return those of the tasks at the end of a sandbox that outlive it: real connections that came back to the pool."""
    return [task for task in tasks if hasattr(task, "conn") and not isinstance(task.conn, Sandboxed)]


def given(pool: Any, tasks: list[Any]) -> None:
    """Give a pool tasks that were taken from it."""
    for task in tasks:
        with contextlib.suppress(RuntimeError):  # its event loop has ended, and its workers have with it
            pool._tasks.put_nowait(task)


def _settle(pool: Any, timeout: float) -> None:
    """Wait until the threads that work for the pool have nothing to do.

    An asynchronous pool has none, and its tasks stop only where they wait: for the server, having chosen what kind of connection.
    """
    waiting = getattr(getattr(pool._tasks, "not_empty", None), "_waiters", None)
    if waiting is None:
        return
    deadline = monotonic() + timeout
    while len(waiting) < sum(worker.is_alive() for worker in pool._workers) and monotonic() < deadline:
        time.sleep(_STEP)


def unopened(pool: Any) -> dict[str, Any]:
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


def adding(pool: Any, session: Any = None, aside: Any = None) -> Callable[[Any], Any]:
    """Return the pool's `_add_to_pool` for connections into the sandbox of `session`, or for real ones if it is None.

    The others are not handed out: a real one goes `aside`, and one into another sandbox comes too late for it.
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
