"""Undo by rolling back: one outer transaction per test, or per class or module with a savepoint per test inside it."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from ..errors import SandboxLimit
from . import Outcome
from .cursors import exchange, render
from .facts import Sequences
from .sandbox import Session

_LOST = (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction)


class Rollback:
    """A reset over a sandbox session. Entering costs one round trip, leaving another, and sequences one more if they are put back.

    Arguments: `session`, whose real connection this reset alone may send transaction control to; `sequences`, positions to return
    to, or None: a rollback does not move sequences back by itself (PostgreSQL documentation, functions-sequence).
    """

    def __init__(self, session: Session, sequences: Sequences | None = None) -> None:
        self._session = session
        self._sequences = sequences
        self._level = ""

    def before(self) -> None:
        """Open a level, the outer transaction with the first. A level of the same session may be open already."""
        session = self._session
        outermost = session.stack.levels == 0
        with session.lock:
            commands = session.stack.enter_level(session.failed)
            self._level = commands[-1][1]
            sent = [render(command) for command in commands]
            self._send([b"BEGIN", *sent] if outermost else sent)

    def after(self) -> Outcome:
        """Undo everything since `before`. A boundary that the test destroyed, by a COMMIT that never passed through the sandbox or
        a lost connection, shows here: the savepoint is gone."""
        session, started = self._session, time.perf_counter()
        spoiled = ""
        with session.lock:
            try:
                commands = [render(command) for command in session.stack.leave_level(self._level)]
                if session.stack.levels or not commands:
                    self._send(commands)
                else:
                    # Session-level advisory locks survive a rollback and would meet the next test.
                    self._send([commands[0], b"ROLLBACK", b"SELECT pg_catalog.pg_advisory_unlock_all()"])
            except _LOST:
                spoiled = "the test ended the outer transaction, so what it wrote was committed"
                session.stack.entries.clear()
                self._send([b"ROLLBACK"])
            except psycopg.OperationalError as error:
                spoiled = f"the connection of the test was lost: {str(error).strip().splitlines()[0]}"
                session.stack.entries.clear()
        if self._sequences is not None and not spoiled and not session.stack.levels:
            self._sequences.restore(session.real)
        return Outcome("rollback", time.perf_counter() - started, spoiled=spoiled)

    def _send(self, commands: list[bytes]) -> None:
        connection: psycopg.Connection[Any] = self._session.real
        if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            raise SandboxLimit(
                "a statement of the application is still running at the end of the test",
                "A thread, or a cursor that streams or copies, has not finished.",
                'Wait for it in the test, or isolate the test with @pytest.mark.dbclone(reset="truncate").',
            )
        connection.wait(exchange(connection.pgconn, commands))
