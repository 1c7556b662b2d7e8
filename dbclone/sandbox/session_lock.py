"""Whose turn it is on the one session: a lock that threads and asyncio tasks share, statement by
statement.

It is fair, it waits no longer than its timeout, and what could only end in a deadlock is an error
at once. A thread never waits for a task of its own event loop, which could not go on meanwhile: the
thread finishes the task's statement for it and takes the turn.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from psycopg import pq
from psycopg.waiting import Ready, Wait

from ..errors import SandboxLimit
from ..process.clock import monotonic
from ..process.forks import OwnerProcess


class TransferableWait:
    """A generator of psycopg that a task waits for, and that another may finish for it; the task
    then finds its outcome."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._wait = Wait.R
        self._end: BaseException | None = None

    def __iter__(self) -> TransferableWait:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, ready: Any) -> Any:
        """Go on, as the generator would."""
        if self._end is None:
            try:
                self._wait = self._generator.send(ready)
                return self._wait
            except BaseException as end:
                self._end = end
        raise self._end

    def finish(self, socket: int, deadline: float) -> bool:
        """Run to the end without an event loop; return whether it ended before the deadline (on the
        monotonic clock)."""
        while self._end is None and monotonic() < deadline:
            with selectors.DefaultSelector() as selector:
                selector.register(socket, int(self._wait))
                found = selector.select(0.1)
            try:
                self.send(Ready(found[0][1]) if found else 0)
            except BaseException:  # it is the task's, who finds it
                break
        return self._end is not None


_MINE: Any = None  # the task of a holder that is a thread


class _Hold:
    """Who has the turn, or waits for it: a `turn` in a thread,
    or in a task of that thread's event loop."""

    __slots__ = ("entered", "statement", "task", "thread", "turn", "wake")

    def __init__(self, turn: ConnectionLock, task: Any = _MINE) -> None:
        self.turn, self.task, self.thread = turn, task, turn.thread or threading.get_ident()
        self.statement: TransferableWait | None = None
        self.entered = False  # whether the task knows that it is its turn
        self.wake: Callable[[], object] = bool


class SessionLock:
    """The lock of one session. Arguments: `pgconn`, the session's; `timeout` in seconds, how long
    to wait for a turn."""

    def __init__(self, pgconn: pq.abc.PGconn, timeout: float) -> None:
        self.timeout = timeout
        self.home = OwnerProcess()
        self.limited = ""  # what had to be refused
        self._pgconn = pgconn
        self._mutex = threading.Lock()
        self._hold: _Hold | None = None
        self._claim: _Hold | None = (
            None  # whoever is in pipeline mode, where the session takes nobody else's statements
        )
        self._claims = 0
        self._writer: _Hold | None = (
            None  # whoever has written in a block that was open when its turn ended
        )
        self._waiting: deque[_Hold] = deque()

    def holds(self, turn: ConnectionLock) -> bool:
        """Return whether it is this one's turn."""
        return self._hold is not None and self._hold.turn is turn

    def acquire(self, turn: ConnectionLock) -> None:
        """Take the turn for this thread. Raises SandboxLimit if that is impossible, or not possible
        in time."""
        # Before the mutex, which another thread may have held when this process was forked.
        self.home.require()
        hold = turn.last
        if hold.thread != (turn.thread or threading.get_ident()) or hold is self._hold:
            hold = turn.last = _Hold(turn)
        with self._mutex:
            if self._hold is None and self._may(hold):
                self._hold = hold
                return
        hold = _Hold(turn)
        deadline, holder = monotonic() + self.timeout, self._hold or self._claim
        if (
            holder is not None
            and holder.thread == hold.thread
            and self._take_over(holder, hold, deadline)
        ):
            return
        woken = threading.Lock()
        woken.acquire()
        hold.wake = woken.release
        with self._mutex:
            self._queue(hold)
        try:
            if not woken.acquire(timeout=max(0.0, deadline - monotonic())):
                self._give_up(hold)
        except BaseException:
            self._withdraw(hold)
            raise

    async def acquire_async(self, turn: ConnectionLock) -> None:
        """Take the turn for this task, without keeping its event loop from running."""
        self.home.require()
        hold = _Hold(turn, asyncio.current_task())
        with self._mutex:
            if self._hold is None and self._may(hold):
                self._hold = hold
                hold.entered = True
                return
        loop, deadline = asyncio.get_running_loop(), monotonic() + self.timeout
        while True:
            woken = loop.create_future()
            with self._mutex:
                hold.wake = lambda woken=woken: loop.call_soon_threadsafe(
                    lambda: woken.done() or woken.set_result(None)
                )  # type: ignore[misc]
                self._queue(hold)
            try:
                await asyncio.wait({woken}, timeout=max(0.0, deadline - monotonic()))
                if not woken.done():
                    self._give_up(hold)
            except BaseException:
                self._withdraw(hold)
                raise
            with self._mutex:
                if self._hold is hold:
                    hold.entered = True
                    return  # otherwise this thread took the turn before the loop came back to us

    def release(self, turn: ConnectionLock, task: Any = _MINE) -> None:
        """Pass the turn on; nothing if it was taken over."""
        with self._mutex:
            if self._has(turn, task):
                if turn.writing():
                    self._writer = self._hold
                if self._waiting:
                    self._next()
                else:
                    self._hold = None
            elif turn.lost:
                turn.lost -= 1

    def pin(self, turn: ConnectionLock, task: Any = _MINE) -> None:
        """Keep the session for one connection, also between its turns. It must be its turn."""
        with self._mutex:
            if self._claim is None:
                self._claim = _Hold(turn, task)
            self._claims += 1

    def unpin(self) -> None:
        """End what `claim` began, as often as it was called."""
        with self._mutex:
            self._claims -= 1
            if self._claims == 0:
                self._claim = None
                if self._hold is None:
                    self._next()

    def running(self, turn: ConnectionLock, statement: TransferableWait | None) -> bool:
        """Note the statement that the task which has the turn waits for; return False if the turn
        was taken from it."""
        hold = self._hold
        if hold is None or not self._has(turn, asyncio.current_task()):
            return False
        hold.statement = statement
        return True

    def force(self, turn: ConnectionLock) -> str:
        """Take the turn whatever happens, because the test is over; return what was in the way, in
        words (empty: nothing was).

        A statement that is still running is cancelled; whoever is in a COPY, a stream or a pipeline
        loses the session.
        """
        try:
            self.acquire(turn)
            return ""
        except SandboxLimit:
            holder = self._hold or self._claim
            blocked = self._doing(holder) if holder is not None else "something"
        if (
            self._hold is not None
            and self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        ):
            self._pgconn.get_cancel().cancel()
        try:
            self.acquire(turn)
        except SandboxLimit:
            with self._mutex:
                self._hold, self._claim, self._claims = _Hold(turn), None, 0
        return blocked

    def _has(self, turn: ConnectionLock, task: Any) -> bool:
        """Return whether this is whose turn it is. The task may be another one: one that closes an
        asynchronous generator."""
        hold = self._hold
        return hold is not None and hold.turn is turn and (hold.task is task or not turn.lost)

    def _may(self, hold: _Hold) -> bool:
        """Return whether nobody keeps the session for itself, by a pipeline or by a transaction
        that has written, and will end it while `hold` waits: in the same thread it could not, and
        then the savepoints say what is the matter."""
        writer = self._writer
        if (
            writer is not None
            and hold.turn.patient
            and writer.turn is not hold.turn
            and writer.turn.writing()
        ):
            both = (
                writer.task is not _MINE and hold.task is not _MINE and writer.task is not hold.task
            )
            if both or writer.thread != hold.thread:
                return False
        return self._claim is None or self._claim.turn is hold.turn

    def _queue(self, hold: _Hold) -> None:
        self._waiting.append(hold)
        if self._hold is None:  # it may have become free since
            self._next()

    def _next(self) -> None:
        """Give the turn to the first who waits and may have it, or to nobody."""
        self._hold = None
        for hold in list(self._waiting):
            if self._may(hold):
                self._waiting.remove(hold)
                self._hold = hold
                try:
                    hold.wake()
                    return
                except RuntimeError:  # its event loop is closed
                    self._hold = None

    def _take_over(self, holder: _Hold, hold: _Hold, deadline: float) -> bool:
        """Take the turn from a task of this very thread, after finishing its statement for it."""
        if holder.task is _MINE:
            raise self._limit(holder, "this thread itself")
        if self._claim is None or self._claim.turn is hold.turn:
            if holder.statement is not None:
                holder.statement.finish(self._pgconn.socket, deadline)
            with self._mutex:
                if self._hold is holder and self._idle(hold.turn):
                    self._hold = hold
                    holder.turn.lost += holder.entered
                    return True
        raise self._limit(
            holder, "a task of this thread, which cannot go on while the thread waits"
        )

    def _idle(self, turn: ConnectionLock) -> bool:
        """Return whether a new statement may be sent."""
        mine = self._claim is not None and self._claim.turn is turn
        piping = self._pgconn.pipeline_status != pq.PipelineStatus.OFF
        return piping == mine and self._pgconn.transaction_status != pq.TransactionStatus.ACTIVE

    def _withdraw(self, hold: _Hold) -> None:
        """Stop waiting; a turn that has come meanwhile is passed on."""
        with self._mutex:
            if hold in self._waiting:
                self._waiting.remove(hold)
            elif self._hold is hold:
                self._next()

    def _give_up(self, hold: _Hold) -> None:
        with self._mutex:
            if hold in self._waiting:
                holder = self._hold or self._claim
                if holder is None:
                    raise self._limit(
                        self._writer,
                        "a transaction",
                        "has written, is open in another thread or task, and",
                    )
                whose = (
                    "this task itself"
                    if hold.task is not _MINE and holder and holder.task is hold.task
                    else ""
                )
                raise self._limit(
                    holder,
                    whose
                    or f"another {'task' if holder and holder.task is not _MINE else 'thread'}",
                )

    def _doing(self, holder: _Hold) -> str:
        if self._claim is holder or self._pgconn.pipeline_status != pq.PipelineStatus.OFF:
            return "is in pipeline mode"
        if self._pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            return "is in the middle of a statement, a COPY or a stream"
        return "has not finished a statement"

    def _limit(self, holder: _Hold | None, who: str, doing: str = "") -> SandboxLimit:
        doing = (
            f"{doing} did not end"
            if doing
            else self._doing(holder)
            if holder is not None
            else "has not finished a statement"
        )
        self.limited = f"a connection waits for {who}, which {doing} on another connection"
        return SandboxLimit(
            self.limited,
            "Inside a rollback all connections share one session, which runs one statement at a"
            f" time; the setting lock_timeout is {self.timeout:g} s.",
            "Finish the one before the other, or isolate this test with"
            ' @pytest.mark.dbclone(reset="truncate").',
        )


class ConnectionLock:
    """The lock of one connection into the session, for `with` in threads and `async with` in tasks.

    Arguments: `writing`, tells whether the connection has written in a block that is open; without
    it, this is the lock of the reset, which waits for nobody's transaction.
    """

    def __init__(
        self, session_lock: SessionLock, writing: Callable[[], bool] | None = None
    ) -> None:
        self.session_lock = session_lock
        self.patient = writing is not None
        self.writing = writing or bool
        self.thread = 0  # for which a thread takes session_lock, if not for itself
        self.last = _Hold(self)  # of a thread, to be used again
        self.lost = 0  # how many tasks have yet to find that the turn was taken from them

    def __enter__(self) -> None:
        self.session_lock.acquire(self)

    def __exit__(self, *_: object) -> None:
        self.session_lock.release(self)

    async def __aenter__(self) -> None:
        await self.session_lock.acquire_async(self)

    async def __aexit__(self, *_: object) -> None:
        self.session_lock.release(self, asyncio.current_task())


class ExclusiveUse:
    """The session for one connection, for as long as a `with` or `async with` lasts."""

    def __init__(self, turn: ConnectionLock) -> None:
        self._turn = turn

    def __enter__(self) -> None:
        with self._turn:
            self._turn.session_lock.pin(self._turn)

    def __exit__(self, *_: object) -> None:
        self._turn.session_lock.unpin()

    async def __aenter__(self) -> None:
        async with self._turn:
            self._turn.session_lock.pin(self._turn, asyncio.current_task())

    async def __aexit__(self, *_: object) -> None:
        self._turn.session_lock.unpin()
