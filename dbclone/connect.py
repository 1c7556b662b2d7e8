"""Connections whose failure tells no secret: errors carry no frame in which a password is a variable."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg

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


def _bare(error: Raised) -> Raised:
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
