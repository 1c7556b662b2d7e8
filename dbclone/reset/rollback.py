"""Undo by rolling back: one outer transaction per test, or per class or module with a savepoint per
test inside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import pq

from ..adapters import handles
from ..errors import SandboxLimit
from ..process.clock import monotonic
from ..sandbox.psycopg3.cursor import render
from ..sandbox.session import Session
from ..server.connection import exchange, free
from .base import Outcome, Strategy
from .sequences import Sequence, restore
from .transactions import NOW, CommitTracker, Moment, Verdict, prepare

_LOST = (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction)


class Level:
    """One level of a sandbox session, in which everything is undone when it is left. Entering costs
    one round trip, leaving another, and sequences one more if they are put back.

    Arguments: `session`, whose real connection this reset alone may send transaction control to;
    `positions`, of sequences to return to, or None: a rollback does not move sequences back by
    itself (PostgreSQL documentation, functions-sequence); `commits`, which is asked, in the message
    that rolls back, whether something was committed meanwhile; `over`, returns the session over
    which sequences are put back, if the sandbox's own may not.
    """

    def __init__(
        self,
        session: Session,
        positions: tuple[Sequence, ...] | None = None,
        commits: CommitTracker | None = None,
        over: Callable[[], psycopg.Connection[Any] | None] = lambda: None,
    ) -> None:
        self._over = over
        self._session = session
        self._positions = positions
        self._commits = commits
        self._level = ""
        self._begun: Moment | None = None

    def enter(self) -> None:
        """Open a level, the outer transaction with the first. A level of the same session may be
        open already."""
        session = self._session
        outermost = session.stack.levels == 0
        with session.lock:
            commands = session.stack.enter_level(session.failed)
            self._level = session.stack.level
            sent = [render(command) for command in commands]
            if self._commits is None:
                self._send([b"BEGIN", *sent] if outermost else sent)
                return
            if outermost:
                results = self._call_prepared(
                    [], lambda name: f"EXECUTE {name}_now".encode(), [b"BEGIN", *sent]
                )
            else:
                results = self._send([f"SELECT {NOW}".encode(), *sent])
            self._begun = Moment.of((results[0].get_value(0, 0), results[0].get_value(0, 1)))

    def leave(self) -> Outcome:
        """Undo everything since `enter`. A boundary that the test destroyed, by a COMMIT that never
        passed through the sandbox or a lost connection, shows here: the savepoint is gone."""
        session, started = self._session, monotonic()
        spoiled, verdict = "", Verdict.NOTHING
        blocked = session.session_lock.force(session.lock)
        if not blocked:
            # What raised in the middle of a statement, such as a limit on the test's time,
            # left it running
            free(session.pgconn)
        try:
            commands = [render(command) for command in session.stack.leave_level(self._level)]
            outermost = bool(commands) and not session.stack.levels
            if outermost:
                commands = [commands[0], b"ROLLBACK"]
            verdict = self._undo_and_classify(commands, outermost)
        except _LOST:
            spoiled = "the test ended the outer transaction, so what it wrote was committed"
            session.stack.entries.clear()
            self._send([b"ROLLBACK"])
        except psycopg.OperationalError as error:
            why = blocked or str(error).strip().splitlines()[0]
            spoiled = f"the connection of the test was lost: {why}"
            session.stack.entries.clear()
        finally:
            session.session_lock.release(session.lock)
        session.forget_undone()
        if self._positions is not None and not spoiled and not session.stack.levels:
            restore(self._over() or session.real, self._positions)
        notes = (f"when it ended, a connection of the application {blocked}",) if blocked else ()
        return Outcome(
            "rollback",
            monotonic() - started,
            spoiled=spoiled,
            verdict=verdict,
            begun=self._begun,
            notes=notes,
        )

    def commit(self) -> str:
        """Commit what the test left, instead of undoing it, and all levels around it; return why
        not, if that is impossible.

        Of a block that has failed nothing is left, as ever, but what was there before it is
        committed.
        """
        session = self._session
        session.session_lock.force(session.lock)
        try:
            commands = (
                [render(("ROLLBACK TO", session.stack.entries[-1].name))] if session.failed else []
            )
            session.stack.entries.clear()
            results = self._send([*commands, b"COMMIT"])
            return "" if results[-1].command_status == b"COMMIT" else "its transaction had failed"
        except (psycopg.Error, IndexError) as error:
            if session.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                with contextlib.suppress(psycopg.Error):
                    self._send([b"ROLLBACK"])
            return str(error).strip().splitlines()[0] if str(error) else "its transaction was lost"
        finally:
            session.session_lock.release(session.lock)

    def _undo_and_classify(self, commands: list[bytes], outermost: bool) -> Verdict:
        """Send the commands that undo, and in the same message the question of
        what was committed meanwhile."""
        commits = self._commits
        if commits is None or not commands:
            self._send(
                [*commands, *([b"SELECT pg_catalog.pg_advisory_unlock_all()"] if outermost else [])]
            )
            return Verdict.NOTHING
        results = (
            self._call_prepared(commands, commits.question, [])
            if outermost
            else self._send([*commands, commits.text])
        )
        moment, statuses = commits.statuses(results[-1])
        if statuses is None:
            moment, statuses = commits.statuses(self._send([commits.text])[-1])
        return commits.classify(moment, statuses, self._begun)

    def _call_prepared(
        self, before: list[bytes], call: Callable[[str], bytes], after: list[bytes]
    ) -> list[Any]:
        """Send a call of one of our prepared statements between other commands, and return the
        results from the call on.

        Unprepared it would cost as much as all the rest. If the statements are not there, not yet
        or discarded by the test, what was to be done before the call has been done when that shows.
        """
        session = self._session
        try:
            return self._send([*before, call(f"dbclone_{session.audits}"), *after])[len(before) :]
        except psycopg.errors.InvalidSqlStatementName:
            session.audits += 1
            name = f"dbclone_{session.audits}"
            texts = prepare(name)
            return self._send([*texts, call(name), *after])[len(texts) :]

    def _send(self, commands: list[bytes]) -> list[Any]:
        connection: psycopg.Connection[Any] = self._session.real
        return list(connection.wait(exchange(connection.pgconn, commands)))


class Rollback(Strategy):
    """Undo by rolling back. The outermost task lends the sandbox to the application's handle; those
    inside it are further levels."""

    name = "rollback"

    def begin(self) -> None:
        """Enter a level. Raises SandboxLimit if the handle cannot be sandboxed, or the data of a
        class or module around are lost."""
        state = self.host.state
        self._outermost = not state.layered
        if not self._outermost and (state.lost or state.broken):
            raise data_lost(state.lose("its connection was lost"))
        self.session = session = state.sandbox()
        positions = state.positions if self.task.sequences and self._outermost else None
        self._moves = positions is None
        self._level = Level(session, positions, state.commits, state.owner_session)
        self._level.enter()
        if self._outermost:
            with contextlib.ExitStack() as stack:
                stack.callback(session.disconnect)
                state.lending = stack
                try:
                    stack.enter_context(handles.sandboxed(self.host.handle, session))
                except BaseException:
                    state.lending = None
                    self._level.leave()
                    raise
                state.lending = stack.pop_all()

    def end(self, label: str = "") -> Outcome:
        state, session = self.host.state, self.session
        assert session is not None
        lent = state.unlend() if self._outermost else contextlib.ExitStack()
        with lent:
            outcome = self._level.leave() if not label else None
            failed = self._level.commit() if label else ""
        if outcome is None:
            outcome = self._keep(label, failed)
        state.sequences_moved = state.sequences_moved or self._moves
        if not outcome.spoiled:
            state.vacuum_if_due()
        return replace(outcome, limit=session.refused())

    def _keep(self, label: str, failed: str) -> Outcome:
        """Keep what a test left, and its level has committed. Data of a class or module around it
        go along."""
        started = monotonic()
        if failed or not self.host.keep_for(label):
            return Outcome(
                self.name,
                monotonic() - started,
                spoiled=f"it could not be kept: {failed or 'see above'}",
            )
        if self.host.state.layered:
            self.host.state.lose(f"{label} failed, and what it left was kept")
        return Outcome(self.name, monotonic() - started)


def data_lost(how: str) -> SandboxLimit:
    """Return the error of a test whose class or module has lost its data: `how`."""
    return SandboxLimit(
        "the data of this class or module are lost",
        f"They were in the transaction that ended too early: {how}.",
        "Find out why, and run these tests again; tests of other classes and modules are not"
        " affected.",
    )
