"""Undo by rolling back: one outer transaction per test, or per class or module with a savepoint per test inside it."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from ..errors import SandboxLimit
from . import Outcome
from .cursors import exchange, render
from .sandbox import Session
from .sequences import Sequence, restore
from .witness import PREPARE_FATES, Moment, Witness

_LOST = (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction)


class Rollback:
    """A reset over a sandbox session. Entering costs one round trip, leaving another, and sequences one more if they are put back.

    Arguments: `session`, whose real connection this reset alone may send transaction control to; `positions`, of sequences to
    return to, or None: a rollback does not move sequences back by itself (PostgreSQL documentation, functions-sequence);
    `witness`, which is asked, in the message that rolls back, whether something was committed meanwhile.
    """

    def __init__(self, session: Session, positions: tuple[Sequence, ...] | None = None, witness: Witness | None = None) -> None:
        self._session = session
        self._positions = positions
        self._witness = witness
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
        spoiled, suspect = "", False
        with session.lock:
            try:
                commands = [render(command) for command in session.stack.leave_level(self._level)]
                outermost = bool(commands) and not session.stack.levels
                if outermost:
                    # Session-level advisory locks survive a rollback and would meet the next test.
                    commands = [commands[0], b"ROLLBACK", b"SELECT pg_catalog.pg_advisory_unlock_all()"]
                suspect = self._audited(commands, outermost)
            except _LOST:
                spoiled = "the test ended the outer transaction, so what it wrote was committed"
                session.stack.entries.clear()
                self._send([b"ROLLBACK"])
            except psycopg.OperationalError as error:
                spoiled = f"the connection of the test was lost: {str(error).strip().splitlines()[0]}"
                session.stack.entries.clear()
        if self._positions is not None and not spoiled and not session.stack.levels:
            restore(session.real, self._positions)
        return Outcome("rollback", time.perf_counter() - started, spoiled=spoiled, suspect=suspect)

    def _audited(self, commands: list[bytes], outermost: bool) -> bool:
        """Send the commands that undo, and in the same message the question of what was committed meanwhile; return whether
        anything was, on this server."""
        witness = self._witness
        if witness is None or not commands:
            self._send(commands)
            return False
        if not outermost:
            # Unprepared: an error here would abort the transaction of the outer level.
            results = self._send([*commands, witness.text])
        else:
            try:
                results = self._send([*commands, witness.question])
            except psycopg.errors.InvalidSqlStatementName:  # not prepared yet, or the test has discarded it; all else was done
                results = self._send([PREPARE_FATES.encode(), witness.question])
        row = tuple(results[-1].get_value(0, column) for column in range(3))
        return not witness.judge(Moment.of(row), row[2])

    def _send(self, commands: list[bytes]) -> list[Any]:
        connection: psycopg.Connection[Any] = self._session.real
        if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            raise SandboxLimit(
                "a statement of the application is still running at the end of the test",
                "A thread, or a cursor that streams or copies, has not finished.",
                'Wait for it in the test, or isolate the test with @pytest.mark.dbclone(reset="truncate").',
            )
        return list(connection.wait(exchange(connection.pgconn, commands)))
