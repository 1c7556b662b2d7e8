"""Connections whose failure tells no secret: errors carry no frame in which a password is a
variable."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import generators, pq

from ..process.clock import monotonic
from .dsn import Dsn


def exchange(pgconn: pq.abc.PGconn, commands: list[bytes]) -> Gen:
    """Send commands in one message, wait for all results, and raise the first error;
    nothing for no commands."""
    if not commands:
        return []
    if pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError("the connection is closed")
    pgconn.send_query(b"; ".join(commands))
    results = yield from generators.execute(pgconn)
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
    return results


Gen = Generator[Any, Any, Any]

Raised = TypeVar("Raised", bound=Exception)


class Interruptible(psycopg.Connection[Any]):
    """A connection on which a statement can follow one that a signal has interrupted, whenever that
    was: cleaning up needs it.

    `patience`, seconds for which the server may say nothing in answer to a statement (0: as long as
    it likes): what bounds a statement on the server, bounds nothing if the process that would have
    to look at the clock is itself stopped.
    """

    patience: float = 0.0

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Let the server think for as long in the block, if that is longer than usual."""
        before = self.patience
        self.patience = max(before, seconds) if before else 0.0
        try:
            yield
        finally:
            self.patience = before

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's, which leaves the connection in use if Ctrl-C came between sending and
        waiting, and after the exception of any other signal's handler, such as one that limits the
        time of a test."""
        try:
            return super().wait(self._bounded(gen) if self.patience else gen, *arguments, **options)
        except psycopg.Error:
            raise
        except BaseException:
            free(self.pgconn)
            raise

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Do what a generator of psycopg's does, which is told ten times a second that nothing has
        come, and end it in time.

        Raises psycopg.OperationalError; then the connection is closed, because the answer may come
        at any time.
        """
        deadline = 0.0
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    deadline = 0.0
                elif not deadline:
                    deadline = monotonic() + self.patience
                elif monotonic() > deadline:
                    pid = self.pgconn.backend_pid
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"server process {pid} has not answered for {self.patience:.0f} s: it"
                        f" is stopped, or the machine is"
                    )
                state = gen.send(ready)
        except StopIteration as done:
            return done.value


def connect(
    dsn: Dsn, kind: type[psycopg.Connection[Any]] = psycopg.Connection, **options: Any
) -> psycopg.Connection[Any]:
    """Return a new psycopg connection to `dsn`. Arguments: `kind`, its class; `options`, of
    `psycopg.connect`, on top of `dsn`.

    Raises psycopg.Error, with no frame in its traceback that has a password in a variable: pytest
    prints those on demand.
    """
    try:
        return kind.connect(**{**dsn.kwargs, **options})
    except psycopg.Error as error:
        failed = _bare(error)
    raise failed


async def connect_async(dsn: Dsn, **options: Any) -> psycopg.AsyncConnection[Any]:
    """As `connect`, for asyncio."""
    try:
        return await psycopg.AsyncConnection.connect(**{**dsn.kwargs, **options})
    except psycopg.Error as error:
        failed = _bare(error)
    raise failed


def hang_up(pgconn: Any) -> None:
    """Close a connection of libpq, without an event loop, so that nothing it had begun goes on
    behind the back of a reset.

    A server that is told good-bye in the middle of a statement finishes that first, with the rows
    of an open COPY that were still on their way (PostgreSQL documentation, protocol-flow,
    "Termination").
    """
    free(pgconn)
    pgconn.finish()


def free(pgconn: Any) -> None:
    """Cancel what a connection of libpq has begun, if it has and nobody waits for it,
    and take its end."""
    if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
        with contextlib.suppress(psycopg.Error):
            pgconn.get_cancel().cancel()
            while (result := pgconn.get_result()) is not None:
                if result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH):
                    pgconn.put_copy_end(b"the test has ended")
                while result.status == pq.ExecStatus.COPY_OUT and pgconn.get_copy_data(0)[0] > 0:
                    pass


def _bare(error: Raised) -> Raised:
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
