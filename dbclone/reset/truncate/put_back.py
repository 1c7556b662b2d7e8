"""Putting back what was written: ask what differs from the template, empty, repair and put back
that, and nothing else.

One round trip if nothing was written, or if the test wrote where tests have written before: the
tables that keep being dirty are emptied in the same message that asks about all others. Else two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from ...process.clock import monotonic, wait_while
from .. import sequences
from ..base import Outcome
from ..sequences import Sequence
from ..transactions import NOW, CommitTracker, Moment, Since
from . import blockers
from .baseline import Baseline, question
from .control import CannotRestore, ResetContext, nothing_committed, now
from .plan import Costs, plan
from .prediction import DirtyPredictor
from .probe import DirtyProbe, DirtyState
from .schema_drift import NEW
from .vacuum import VacuumScheduler


class PutBack:
    """What puts back a database, over its control session, any number of times.

    Arguments: `question`, prepared in a control session with `options`, which nobody else uses;
    `baseline`, what the template is like; `commits`, what is known of the time since the database
    was equal to it, shared with other resets of the same database.
    """

    def __init__(
        self, question: DirtyProbe, baseline: Baseline, where: ResetContext, commits: CommitTracker
    ) -> None:
        self.baseline = baseline
        self.facts = facts = baseline.facts
        self.commits = commits
        self.upkeep = VacuumScheduler(question.connection, facts)
        self._question = question
        self._control = question.connection
        self._where = where
        self._before = baseline.answer
        self._blind = baseline.blind(where.clone_seconds)
        question.ignore([table.oid for table in self._blind])
        self._costs = Costs.start(where.durable)
        self._sequences = {sequence.oid: sequence for sequence in facts.sequences}
        self._gate = all(sequence.logged for sequence in facts.sequences)
        self._guess = DirtyPredictor(self._control, facts)
        self._idle = True

    @classmethod
    def here(
        cls,
        control: psycopg.Connection[Any],
        where: ResetContext,
        commits: CommitTracker,
        keep: Iterable[str] = (),
        known: tuple[Sequence, ...] | None = None,
    ) -> PutBack:
        """Return the reset of a database that is equal to its template now, sequences excepted:
        theirs are in `known`, if something has moved them. Raises KeptTableReferenced and
        SettingsError about `keep`."""
        asked = question(control, where.superuser, keep, known)
        if not where.layered():
            sequences.restore(control, asked.facts.sequences, used=True)
        moment = now(control)
        commits.settle(Since(moment), moment)
        return cls(asked, Baseline.remember(asked, commits.since), where, commits)

    @classmethod
    def like(
        cls,
        other: Baseline,
        control: psycopg.Connection[Any],
        where: ResetContext,
        commits: CommitTracker,
    ) -> PutBack:
        """Return the reset of a database that may not be equal to its template any more, from what
        is known of another copy."""
        found = cls(DirtyProbe(control, other.facts, where.superuser), other, where, commits)
        if not where.layered():
            sequences.restore(control, other.facts.sequences, used=True)
        found._before = replace(other.answer, stamps=())  # the stamps are those of another session
        found._idle = False
        return found

    def settle(self) -> None:
        """Take the present state for the template's: whoever calls knows that it is."""
        moment = self.now()
        self.commits.settle(Since(moment), moment)

    def now(self) -> Moment:
        """Return the present moment, in one round trip."""
        (result,) = self._question.send([f"SELECT {NOW}".encode()])
        return Moment.of((result.get_value(0, 0), result.get_value(0, 1)))

    def restore_sequences(self) -> None:
        """Put sequences back that something other than this reset has left behind."""
        sequences.restore(self._control, self.facts.sequences, used=True)
        self.settle()

    def run(self) -> Outcome:
        """Make the database equal to its template, or say in the outcome why it has to be replaced.

        Raises ResetBlocked if sessions are in the way for longer than `lock_timeout` and may not be
        ended.
        """
        started = monotonic()
        notes: list[str] = []
        outcome = Outcome("truncate", 0.0)
        try:
            for attempt in range(5):
                try:
                    outcome = self._once(outcome)
                    if self._writers_gone(notes):
                        break
                except psycopg.errors.LockNotAvailable:
                    self._recover()
                    self._clear(blockers.sessions(self._control, self._where.spared()), notes)
                except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                    self._recover()
                    if attempt == 4:
                        raise
            else:
                raise CannotRestore("sessions went on writing while it was reset")
        except CannotRestore as spoiled:
            outcome = replace(outcome, spoiled=str(spoiled))
        except psycopg.Error as error:
            self._recover()
            outcome = replace(
                outcome, spoiled=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            )
        if self.upkeep.due() and not outcome.spoiled:
            with contextlib.suppress(psycopg.Error):  # the next time will do
                self.upkeep.run()
        return replace(outcome, seconds=monotonic() - started, notes=tuple(notes))

    def _once(self, outcome: Outcome) -> Outcome:
        if self._idle and self._gate:
            moment = self.now()
            if self.commits.unchanged(moment):
                return outcome
        # Before anything is asked in vain
        self._see_nothing([table.shown for table in self._blind])
        guessed = self._guess.commands() if not (self._idle or self._where.layered()) else []
        since = self.commits.since
        results = self._question.send([*guessed, *self._question.commands(since)])
        hit = self._guess.read(results[0]) if guessed else set()
        answer = self._question.read(results, since)
        self._compare(answer, since)
        changed = self.baseline.changed(answer)
        self._guess.learn(hit, answer.dirty, answer.moved)
        self._idle = not (hit or answer.dirty or changed or answer.moved)
        self.upkeep.note([*hit, *answer.dirty, *changed])
        if not (answer.dirty or changed or answer.moved or answer.objects != self._before.objects):
            self.commits.settle(Since(answer.moment), answer.moment)
        else:
            self._put_right(answer, changed, since)
        return replace(outcome, tables=outcome.tables + len(hit) + len(answer.dirty) + len(changed))

    def dirty(self, begun: Moment | None = None) -> tuple[dict[str, int], str]:
        """Return what differs from the template, without changing it: rows by table, and what else,
        in words.

        Arguments: `begun`, count only rows that are newer, where they can be told. Raises
        CannotRestore if something was committed on this server, and there are tables that may not
        be looked at.
        """
        if hidden := [table.shown for table in self._blind if table.opaque]:
            self._see_nothing(hidden)
        since = self.commits.since
        answer = self._question.ask(since)
        answer.seeds.update(
            self._question.count([table for table in self._blind if not table.opaque], since)
        )
        rows = {}
        newer = sql.SQL((Since(begun) if begun else since).newer())
        for oid in answer.dirty:
            table = self.facts.by_oid[oid]
            query = sql.SQL("SELECT count(*) FILTER (WHERE {}) FROM ONLY {}").format(
                newer, table.identifier
            )
            rows[table.shown] = (
                0 if table.opaque else int(self._control.execute(query).fetchall()[0][0])
            )
        for oid in self.baseline.changed(answer):
            (old, count), before = answer.seeds[oid], self.baseline.counts[oid]
            rows[self.facts.by_oid[oid].shown] = max(count - old, before - old)
        other = self._schema_drift(since) if self._suspicious(answer) else ""
        if answer.objects != self._before.objects:
            other = "; ".join(filter(None, [other, "large objects"]))
        if not (rows or other):
            self.commits.settle(Since(answer.moment), answer.moment)
        self._idle = False
        return rows, other

    def newer(self, since: Since) -> bool:
        """Return whether rows, objects or large objects were added or changed after a moment before
        this reset was made."""
        answer = self._question.ask(since)
        changed = (
            any(old < count for old, count in answer.seeds.values())
            or answer.objects[1] != answer.objects[2]
        )
        return changed or any(int(count) >= NEW for count in answer.counts.split(","))

    def _suspicious(self, answer: DirtyState) -> bool:
        return answer.stamps != self._before.stamps or answer.counts != self._before.counts

    def _schema_drift(self, since: Since) -> str:
        """Return what has changed in the schema. What it was like is not worth remembering before
        it is asked for: a copy of the template tells, which costs as much as the one that will be
        needed if it has changed."""
        drift = self.baseline.drift
        if not drift.known:
            if self._where.sibling is None:
                return "something in the catalogues"
            with self._where.sibling() as connection:
                drift.learn(connection, Since(now(connection)))
        return drift.look(self._control, since)

    def _compare(self, answer: DirtyState, since: Since) -> None:
        """Raise CannotRestore if the schema is not the template's any more, or if rows changed that
        cannot be looked at."""
        if self._suspicious(answer):
            if changed := self._schema_drift(since):
                raise CannotRestore(f"it changed the schema: {changed}")
            # Only statistics, sizes or files: what was counted is still right, the tables were only
            # analysed anew.
            self._before = replace(self._before, stamps=answer.stamps)
        # Again: this is about all that was committed before the answer
        self._see_nothing([table.shown for table in self._blind])

    def _see_nothing(self, tables: list[str]) -> None:
        """Raise CannotRestore if something was committed and there are
        tables that are not looked at."""
        if tables and not nothing_committed(self._control, self.commits):
            raise CannotRestore(
                f"something was committed, and looking for it in {', '.join(tables)} is"
                f" dearer than a new clone"
            )

    def _put_right(self, answer: DirtyState, changed: list[int], since: Since) -> None:
        """Run the plan for an answer, in one round trip, and one more for each table of which seeds
        were changed."""
        if fixed := [self.facts.by_oid[oid].shown for oid in changed if oid in self.baseline.fixed]:
            raise CannotRestore(f"{', '.join(fixed)} changed, and cannot be put back row by row")
        repairs = []
        for oid in changed:
            seeds = self.baseline.seeds[oid]
            repairs += seeds.repair(
                seeds.changed(self._control, since, answer.seeds[oid][0]), since
            )
        made = plan(self.facts, answer.dirty, self._costs, repairs)
        if made.impossible:
            raise CannotRestore(made.impossible)
        commands = [*made.statements, *self._objects(answer, since)]
        if answer.moved and not self._where.layered():
            commands.append(sequences.put_back(self._sequences[oid] for oid in answer.moved))
        started = monotonic()
        texts = [command.as_bytes(self._control) for command in commands]
        results = self._question.send(
            [
                b"BEGIN",
                *texts,
                b"SELECT pg_catalog.pg_current_xact_id()",
                b"COMMIT",
                f"SELECT {NOW}".encode(),
            ]
        )
        ours, end = (
            int(results[-3].get_value(0, 0)),
            Moment.of((results[-1].get_value(0, 0), results[-1].get_value(0, 1))),
        )
        self._costs = self._costs.learn(made.pages, made.truncated, monotonic() - started)
        self.commits.settle(Since(answer.moment, (ours,)), end)

    def _objects(self, answer: DirtyState, since: Since) -> list[sql.Composed]:
        """Return what removes large objects that were made,
        or raise CannotRestore if old ones have changed."""
        if answer.objects == self._before.objects:
            return []
        if answer.objects[:2] != self._before.objects[:2]:
            raise CannotRestore("it changed a large object of the template")
        return [
            sql.SQL(
                "SELECT count(pg_catalog.lo_unlink(oid)) FROM pg_catalog.pg_largeobject_metadata"
                " WHERE {}"
            ).format(sql.SQL(since.newer()))
        ]

    def _writers_gone(self, notes: list[str]) -> bool:
        """Return whether nobody in this database has written something that may still be committed.

        Waits for those who have, up to `lock_timeout`; then they are ended, or ResetBlocked is
        raised. False: somebody was there, so that it has to be asked again what there is.
        """
        if self.commits.still:
            return True
        found = blockers.writers(self._control, self._where.spared())
        prepared = blockers.roll_back_prepared(self._control)
        if not found:
            return not prepared
        found = wait_while(
            lambda: blockers.writers(self._control, self._where.spared()),
            self._where.lock_timeout,
            0.005,
        )
        self._clear(found, notes)
        return False

    def _clear(self, found: list[blockers.BlockingSession], notes: list[str]) -> None:
        """End the sessions that are in the way, or raise ResetBlocked."""
        if not self._where.terminate:
            if found:
                raise blockers.blocked(self._where.name, self._where.lock_timeout, found)
            return
        try:
            left = blockers.end(self._control, found)
        except psycopg.errors.InsufficientPrivilege as error:
            raise CannotRestore(
                f"a session is in the way and may not be ended: {str(error).strip()}"
            ) from None
        if left:
            raise CannotRestore(f"{left[0]}, and did not end when told to")
        notes += [f"ended a session in the way of a reset: {session}" for session in found]

    def _recover(self) -> None:
        """Leave the aborted transaction of the control session."""
        if (
            not self._control.closed
            and self._control.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE
        ):
            self._control.execute("ROLLBACK", prepare=False)
