"""What undoes tests in one database: the sandbox's session, the control session, and what both know of the time since the database
was equal to its template."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from ..databases.ownership import licensed_here
from ..reset import sequences
from ..reset.sequences import Sequence
from ..reset.transactions import Moment, Since, Witness
from ..reset.truncate.baseline import Baseline
from ..reset.truncate.control import Circumstances, nothing_committed, now, options
from ..reset.truncate.strategy import Truncate
from ..sandbox.session import Session
from ..server.server import Server

Connection = psycopg.Connection[Any]

Sibling = Callable[[], AbstractContextManager[str]]


def _plain(connection: Connection) -> Connection:
    """Return a connection through which psycopg prepares nothing: with what it prepared it would discard, after some statements,
    all that has been prepared in the session, and so the question."""
    connection.prepare_threshold = None
    return connection


@dataclass
class Undo:
    """The two sessions, opened when they are first needed.

    Arguments: `name` and `owner` of the database; `connect`, makes the connection that becomes the sandbox; `sibling`, makes
    another copy of the template for a block and gives its name; `clone_seconds`, what such a copy costs.
    """

    server: Server
    name: str
    owner: str
    connect: Callable[[], Connection]
    sibling: Sibling
    clone_seconds: float = 0.1
    witness: Witness | None = None
    positions: tuple[Sequence, ...] = ()
    moved: bool = False  # sequences, by tests that were rolled back
    tainted: bool = False  # a test without a reset left something
    created: Moment | None = None  # when the database was made
    made: int = 0  # its oid, as this process made it
    apart: bool = False  # the sandbox's session is of a role that may not see and write everything
    _origin: Since | None = None
    _session: Session | None = None
    _control: Connection | None = None
    _truncate: Truncate | None = None
    _baseline: Baseline | None = None
    _resets: int = field(default=0)
    _filled: bool = False  # beyond what the template has

    def sandbox(self) -> Session:
        """Return the session that sandboxed tests share, opened if it is not."""
        if self._session is None or self._session.real.closed:
            if self.apart:
                self.truncating()  # which learns as the role that may see all
            self._session = Session(self._learning(self.connect()), self.server.settings.lock_timeout)
            if self._filled and self._baseline is None:
                self.truncating()
        return self._session

    def owner_session(self) -> Connection | None:
        """Return the control session if only that may put everything back; None if the sandbox's own may."""
        if not self.apart:
            return None
        self.truncating()
        return self._control

    @property
    def broken(self) -> bool:
        """Whether the session that sandboxed tests share is known to be lost."""
        return self._session is not None and bool(self._session.real.closed)

    def _learning(self, connection: Connection) -> Connection:
        """Ask for the moment and for the positions of sequences over the first connection, before a test has done anything.

        Something may have been written since the database was made, by a fixture of the whole session: that stays, and has to be
        learned now, because no other copy of the template has it.
        """
        if self.witness is None:
            self.witness = Witness(now(connection))
            self._origin = self.witness.since
            self.positions = self.positions or sequences.ask(connection)
            if self.created is not None and not nothing_committed(connection, Witness(self.created)):
                self._filled = True
        return connection

    def adopt(self) -> None:
        """Take the present state for the one to come back to: a fixture wider than a test has committed something.

        Sequences too: where rows have been added, the numbers that they took are not free any more.
        """
        if self._control is not None:
            self._control.close()
        self._control = self._truncate = self._baseline = self.witness = None
        self.positions = ()
        self._filled = True
        self.truncating()

    def refill(self) -> str:
        """Bring a fresh copy of the template to the state that tests start from, if that was more than the template; return what
        could not be brought back, in words."""
        if not self._filled or self._baseline is None:
            return ""
        outcome = self.truncating().after()
        if outcome.spoiled:
            self.disconnect()
            self._baseline = None
        return outcome.spoiled

    def truncating(self) -> Truncate:
        """Return the reset over the control session, opened if it is not.

        What the template is like is learned here if nothing has been committed here since, or else from a sibling. Raises NotOurs
        if the name leads to a database that is not the one to reset.
        """
        if self._truncate is not None and self._control is not None and not self._control.closed:
            return self._truncate
        settings, superuser = self.server.settings, self.server.facts.superuser
        given = options(superuser, settings.lock_timeout)
        control = _plain(self.server.connect(self.name, f"control {self.owner}", given))
        try:
            licensed_here(control, self.server, self.name, self.made)
        except BaseException:
            control.close()
            raise
        self._control = self._learning(control)
        assert self.witness is not None
        assert self._origin is not None
        where = Circumstances(
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
        if self._baseline is None and not self.tainted and (self._filled or nothing_committed(self._control, self.witness)):
            self._truncate = Truncate.here(self._control, where, self.witness, settings.keep, self.positions)
            self._baseline = self._truncate.baseline
            if self._filled and self.created is not None:
                self._filled = self._truncate.newer(Since(self.created))  # others may have been busy, in other databases
            self.moved = self.moved and self._layered()
            return self._truncate
        if self._baseline is None:
            self._baseline = self._learned_elsewhere(where, given)
        if self.tainted:
            self.witness.settle(self._origin, self._origin.moment)
        self._truncate = Truncate.like(self._baseline, self._control, where, self.witness)
        return self._truncate

    def _learned_elsewhere(self, where: Circumstances, given: str) -> Baseline:
        with self._connected_sibling(given) as connection:
            return Truncate.here(connection, where, Witness(now(connection)), self.server.settings.keep).baseline

    @contextlib.contextmanager
    def _connected_sibling(self, given: str) -> Iterator[Connection]:
        with self.sibling() as name, contextlib.closing(self.server.connect(name, f"baseline {self.owner}", given)) as connection:
            yield _plain(connection)

    def _layered(self) -> bool:
        """Return whether data of a class or module are in the sandbox, not committed: they have numbers from sequences, which must
        not give them again."""
        return self._session is not None and not self._session.real.closed and self._session.stack.levels > 0

    def _spared(self) -> list[int]:
        """Return the process ids of our own sessions."""
        found = [self._session.real] if self._session is not None else []
        return [connection.info.backend_pid for connection in found if not connection.closed]

    def keep_small(self) -> None:
        """Count one rollback, and vacuum what many of them have blown up when it is time."""
        self._resets += 1
        if self._resets % 100 == 0:
            with contextlib.suppress(psycopg.Error):  # the next time will do
                self.truncating().upkeep.run(everything=True)

    def disconnect(self) -> None:
        """Close both sessions: another copy of the template, or a state that was put aside, takes the database's place."""
        for connection in (self._session.real if self._session else None, self._control):
            if connection is not None:
                connection.close()
        self._session = self._control = self._truncate = None

    def forget(self) -> None:
        """Close both sessions, and start anew with a fresh copy of the template; what the template is like stays known."""
        self.disconnect()
        self.witness, self._origin, self.moved, self.tainted = None, None, False, False
