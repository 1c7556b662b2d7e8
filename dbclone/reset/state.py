"""What is known of one database since it was a copy of its template, and the two sessions over
which tests in it are undone: the sandbox's and the control session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import psycopg

from ..databases.ownership import verify_connected
from ..sandbox.session import Session
from ..server.server import Server
from . import sequences
from .sequences import Sequence
from .transactions import CommitTracker, Moment, Since
from .truncate.baseline import Baseline
from .truncate.control import ResetContext, nothing_committed, now, options
from .truncate.put_back import PutBack

Connection = psycopg.Connection[Any]
Sibling = Callable[[], AbstractContextManager[str]]


class Start(Enum):
    """What tests start from: the TEMPLATE, or that and SESSION_DATA, which fixtures of the whole
    session have committed."""

    TEMPLATE = "template"
    SESSION_DATA = "session data"


class Condition(Enum):
    """How the database is between two tests: EQUAL to what they start from, DIRTY with what a test
    without a reset left, or EMPTY after the reset drop."""

    EQUAL = "equal"
    DIRTY = "dirty"
    EMPTY = "empty"


class Event(Enum):
    """What changes either: the database was COPIED anew; a fixture WROTE something that stays; what
    was committed was ELSEWHERE after all; a test without a reset LEFT what it wrote; everything was
    dropped (EMPTIED), or BUILT."""

    COPIED = "copied"
    WROTE = "wrote"
    ELSEWHERE = "elsewhere"
    LEFT = "left"
    EMPTIED = "emptied"
    BUILT = "built"


def after(start: Start, condition: Condition, event: Event) -> tuple[Start, Condition]:
    """Return what tests start from and how the database is, after an event. What they start from
    outlives a copy: it is put back."""
    start = {Event.WROTE: Start.SESSION_DATA, Event.ELSEWHERE: Start.TEMPLATE}.get(event, start)
    if event in (Event.COPIED, Event.BUILT):
        return start, Condition.EQUAL
    if event is Event.EMPTIED:
        return start, Condition.EMPTY
    if event is Event.LEFT and condition is Condition.EQUAL:
        return start, Condition.DIRTY
    return start, condition


def _plain(connection: Connection) -> Connection:
    """Return a connection through which psycopg prepares nothing: with what it prepared it would
    discard, after some statements, all that has been prepared in the session, and so the question.
    """
    connection.prepare_threshold = None
    return connection


@dataclass
class ResetState:
    """The two sessions, opened when they are first needed, and what both know.

    Arguments: `name` and `owner` of the database; `connect`, makes the connection that becomes the
    sandbox; `sibling`, makes another copy of the template for a block and gives its name;
    `clone_seconds`, what such a copy costs.

    Attributes: `start` and `condition`; `commits`, what is known of transactions since the database
    was equal to its start; `positions` of sequences then, and whether rollbacks have left them
    elsewhere (`sequences_moved`); `made`, the database's oid as this process made it, and
    `created`, when; `lending`, while a sandbox is lent to the application's handle, what ends that,
    and `lost`, what has become of the data of the class or module in it; `apart`, whether the
    sandbox's session is of a role that may not see and write everything.
    """

    server: Server
    name: str
    owner: str
    connect: Callable[[], Connection]
    sibling: Sibling
    clone_seconds: float = 0.1
    start: Start = Start.TEMPLATE
    condition: Condition = Condition.EQUAL
    commits: CommitTracker | None = None
    positions: tuple[Sequence, ...] = ()
    sequences_moved: bool = False
    created: Moment | None = None
    made: int = 0
    lending: contextlib.ExitStack | None = None
    lost: str = ""
    apart: bool = False
    _origin: Since | None = None
    _session: Session | None = None
    _control: Connection | None = None
    _put_back: PutBack | None = None
    _baseline: Baseline | None = None
    _rollbacks: int = field(default=0)

    def note(self, event: Event) -> None:
        """Take note of an event."""
        self.start, self.condition = after(self.start, self.condition, event)

    @property
    def layered(self) -> bool:
        """Whether a sandbox is lent to the application's handle."""
        return self.lending is not None

    @property
    def broken(self) -> bool:
        """Whether the session that sandboxed tests share is known to be lost."""
        return self._session is not None and bool(self._session.real.closed)

    def lose(self, how: str) -> str:
        """Note what has become of the data of the class or module that is open; return what was
        noted first."""
        self.lost = self.lost or how
        return self.lost

    def unlend(self) -> contextlib.ExitStack:
        """Note that the outermost level of the sandbox ends; return what takes the sandbox from the
        application's handle."""
        lent, self.lending, self.lost = self.lending or contextlib.ExitStack(), None, ""
        return lent

    def sandbox(self) -> Session:
        """Return the session that sandboxed tests share, opened if it is not."""
        if self._session is None or self._session.real.closed:
            if self.apart:
                self.put_back()  # which learns as the role that may see all
            self._session = Session(
                self._learning(self.connect()), self.server.settings.lock_timeout
            )
            if self.start is Start.SESSION_DATA and self._baseline is None:
                self.put_back()
        return self._session

    def owner_session(self) -> Connection | None:
        """Return the control session if only that may put everything back; None if the sandbox's
        own may."""
        if not self.apart:
            return None
        self.put_back()
        return self._control

    def _learning(self, connection: Connection) -> Connection:
        """Ask for the moment and for the positions of sequences over the first connection, before a
        test has done anything.

        Something may have been written since the database was made, by a fixture of the whole
        session: that stays, and has to be learned now, because no other copy of the template has
        it.
        """
        if self.commits is None:
            self.commits = CommitTracker(now(connection))
            self._origin = self.commits.since
            self.positions = self.positions or sequences.ask(connection)
            if self.created is not None and not nothing_committed(
                connection, CommitTracker(self.created)
            ):
                self.note(Event.WROTE)
        return connection

    def adopt(self) -> None:
        """Take the present state for the one to come back to: a fixture wider than a test has
        committed something.

        Sequences too: where rows have been added, the numbers that they took are not free any more.
        """
        if self._control is not None:
            self._control.close()
        self._control = self._put_back = self._baseline = self.commits = None
        self.positions = ()
        self.note(Event.WROTE)
        self.put_back()

    def refill(self) -> str:
        """Bring a fresh copy of the template to the state that tests start from, if that was more
        than the template; return what could not be brought back, in words."""
        if self.start is Start.TEMPLATE or self._baseline is None:
            return ""
        outcome = self.put_back().run()
        if outcome.spoiled:
            self.disconnect()
            self._baseline = None
        return outcome.spoiled

    def put_back(self) -> PutBack:
        """Return what puts back, over the control session, opened if it is not.

        What the template is like is learned here if nothing has been committed here since, or else
        from a sibling. Raises NotOwned if the name leads to a database that is not the one to
        reset.
        """
        if self._put_back is not None and self._control is not None and not self._control.closed:
            return self._put_back
        settings, superuser = self.server.settings, self.server.facts.superuser
        given = options(superuser, settings.lock_timeout)
        control = _plain(self.server.connect(self.name, f"control {self.owner}", given))
        try:
            verify_connected(control, self.server, self.name, self.made)
        except BaseException:
            control.close()
            raise
        self._control = self._learning(control)
        assert self.commits is not None
        assert self._origin is not None
        where = ResetContext(
            self.name,
            superuser,
            self.server.facts.durable,
            settings.lock_timeout,
            settings.on_leak == "terminate",
            self.clone_seconds,
            self._spared,
            lambda: self._connected_sibling(given),
            self._layered,
        )
        if self._baseline is None and self._is_start():
            self._put_back = PutBack.here(
                self._control, where, self.commits, settings.keep, self.positions
            )
            self._baseline = self._put_back.baseline
            created = self.created if self.start is Start.SESSION_DATA else None
            if created is not None and not self._put_back.newer(Since(created)):
                self.note(Event.ELSEWHERE)  # others were busy, in other databases
            self.sequences_moved = self.sequences_moved and self._layered()
            return self._put_back
        if self._baseline is None:
            self._baseline = self._learned_elsewhere(where, given)
        if self.condition is Condition.DIRTY:
            self.commits.settle(self._origin, self._origin.moment)
        self._put_back = PutBack.like(self._baseline, self._control, where, self.commits)
        return self._put_back

    def _is_start(self) -> bool:
        """Return whether the database is now what tests start from, and can be learned here."""
        assert self._control is not None
        assert self.commits is not None
        if self.condition is Condition.DIRTY:
            return False
        return self.start is Start.SESSION_DATA or nothing_committed(self._control, self.commits)

    def _learned_elsewhere(self, where: ResetContext, given: str) -> Baseline:
        with self._connected_sibling(given) as connection:
            return PutBack.here(
                connection, where, CommitTracker(now(connection)), self.server.settings.keep
            ).baseline

    @contextlib.contextmanager
    def _connected_sibling(self, given: str) -> Iterator[Connection]:
        with (
            self.sibling() as name,
            contextlib.closing(
                self.server.connect(name, f"baseline {self.owner}", given)
            ) as connection,
        ):
            yield _plain(connection)

    def _layered(self) -> bool:
        """Return whether data of a class or module are in the sandbox, not committed: they have
        numbers from sequences, which must not give them again."""
        return (
            self._session is not None
            and not self._session.real.closed
            and self._session.stack.levels > 0
        )

    def _spared(self) -> list[int]:
        """Return the process ids of our own sessions."""
        found = [self._session.real] if self._session is not None else []
        return [connection.info.backend_pid for connection in found if not connection.closed]

    def vacuum_if_due(self) -> None:
        """Count one rollback, and vacuum what many of them have blown up when it is time."""
        self._rollbacks += 1
        if self._rollbacks % 100 == 0:
            with contextlib.suppress(psycopg.Error):  # the next time will do
                self.put_back().upkeep.run(everything=True)

    def disconnect(self) -> None:
        """Close both sessions: another copy of the template, or a state that was put aside, takes
        the database's place."""
        for connection in (self._session.real if self._session else None, self._control):
            if connection is not None:
                connection.close()
        self._session = self._control = self._put_back = None

    def forget(self) -> None:
        """Close both sessions, and start anew with a fresh copy of the template; what the template
        is like stays known."""
        self.disconnect()
        self.commits, self._origin, self.sequences_moved = None, None, False
        self.note(Event.COPIED)
