"""Connections whose failure tells no secret: errors carry no frame in which a password is a variable."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

import psycopg
from psycopg import pq

from .dsn import Dsn

Raised = TypeVar("Raised", bound=Exception)


def connect(dsn: Dsn, **options: Any) -> psycopg.Connection[Any]:
    """Return a new psycopg connection to `dsn`. Arguments: `options`, of `psycopg.connect`, on top of it.

    Raises psycopg.Error, with no frame in its traceback that has a password in a variable: pytest prints those on demand.
    """
    try:
        return psycopg.connect(**{**dsn.kwargs, **options})
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
    """Close a connection of libpq, without an event loop, so that nothing it had begun goes on behind the back of a reset.

    A server that is told good-bye in the middle of a statement finishes that first, with the rows of an open COPY that were still
    on their way (PostgreSQL documentation, protocol-flow, "Termination").
    """
    if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
        with contextlib.suppress(psycopg.Error):
            pgconn.get_cancel().cancel()
            while (result := pgconn.get_result()) is not None:
                if result.status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_BOTH):
                    pgconn.put_copy_end(b"the test has ended")
                while result.status == pq.ExecStatus.COPY_OUT and pgconn.get_copy_data(0)[0] > 0:
                    pass
    pgconn.finish()


def _bare(error: Raised) -> Raised:
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
