"""What psycopg's objects around a sandboxed connection believe of it, and what is said of statements that no sandbox can run."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import pq

from ..errors import SandboxLimit

Gen = Generator[Any, Any, Any]


class Info(psycopg.ConnectionInfo):
    """What `connection.info` tells: the transaction status is the one that the application believes in."""

    connection: Any

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return pq.TransactionStatus(self.connection.status)


class Seen:
    """A pgconn for Python code that asks it for its status: the one that the application believes in."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return pq.TransactionStatus(self._connection.status)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.pgconn, name)


class Segments:
    """Mixed into psycopg's pipelines: they say when they end a transaction."""

    _conn: Any

    def _enqueue_sync(self) -> None:
        super()._enqueue_sync()  # type: ignore[misc]
        self._conn._segment = None


class Block:
    """Mixed into psycopg's transaction blocks: what they believe of the transaction, and that no limit is lost in one.

    psycopg logs what goes wrong in rolling a block back, and goes on.
    """

    _limit: SandboxLimit | None = None

    def __init__(self, connection: Any, *arguments: Any) -> None:
        super().__init__(connection, *arguments)  # type: ignore[call-arg]
        self.pgconn = connection.seen

    def _rollback_gen(self, error: BaseException | None) -> Gen:
        try:
            return (yield from super()._rollback_gen(error))  # type: ignore[misc]
        except SandboxLimit as limit:
            self._limit = limit
            raise

    def _exit_gen(self, *error: Any) -> Gen:
        swallowed = yield from super()._exit_gen(*error)  # type: ignore[misc]
        if self._limit is not None:
            raise self._limit
        return swallowed


def never(command: str, text: str) -> SandboxLimit:
    return SandboxLimit(
        f"{command} inside a rollback",
        f"The statement is: {text.strip()[:100]}. In the one transaction that will be rolled back it cannot do its work.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate"), or "clone".',
    )


def two_phase(statement: str) -> SandboxLimit:
    return SandboxLimit(
        "two-phase commit inside a rollback",
        f"The statement is: {statement}. A prepared transaction outlives its session, so no rollback could undo it.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )
