"""What undoes tests in one database: the sandbox's session, the control session, and what both know of the time since the database
was equal to its template."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from .reset import sequences
from .reset.baseline import Baseline
from .reset.sandbox import Session
from .reset.sequences import Sequence
from .reset.truncate import Circumstances, Truncate, nothing_committed, options
from .reset.witness import NOW, Moment, Since, Witness
from .server import Server

Connection = psycopg.Connection[Any]
Sibling = Callable[[], AbstractContextManager[str]]


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
    _origin: Since | None = None
    _session: Session | None = None
    _control: Connection | None = None
    _truncate: Truncate | None = None
    _baseline: Baseline | None = None
    _resets: int = field(default=0)

    def sandbox(self) -> Session:
        """Return the session that sandboxed tests share, opened if it is not."""
        if self._session is None or self._session.real.closed:
            self._session = Session(self._learning(self.connect()))
        return self._session

    def _learning(self, connection: Connection) -> Connection:
        """Ask for the moment and for the positions of sequences over the first connection, before a test has done anything."""
        if self.witness is None:
            row = connection.cursor(row_factory=tuple_row).execute(f"SELECT {NOW}".encode()).fetchone() or ()
            self.witness = Witness(Moment.of(tuple(row)))
            self._origin = self.witness.since
            self.positions = sequences.ask(connection)
        return connection

    def truncating(self) -> Truncate:
        """Return the reset over the control session, opened if it is not.

        What the template is like is learned here if nothing has been committed here since, or else from a sibling.
        """
        if self._truncate is not None and self._control is not None and not self._control.closed:
            return self._truncate
        settings, superuser = self.server.settings, self.server.facts.superuser
        given = options(superuser, settings.lock_timeout)
        self._control = self._learning(self.server.connect(self.name, f"control {self.owner}", given))
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
        )
        if self._baseline is None and not self.tainted and nothing_committed(self._control, self.witness):
            self._truncate = Truncate.here(self._control, where, self.witness, settings.keep, self.positions)
            self._baseline = self._truncate.baseline
            self.moved = False
            return self._truncate
        if self._baseline is None:
            self._baseline = self._learned_elsewhere(where, given)
        if self.tainted:
            self.witness.settle(self._origin, self._origin.moment)
        self._truncate = Truncate.like(self._baseline, self._control, where, self.witness)
        return self._truncate

    def _learned_elsewhere(self, where: Circumstances, given: str) -> Baseline:
        with self._connected_sibling(given) as connection:
            row = connection.execute(f"SELECT {NOW}".encode()).fetchone() or ()
            return Truncate.here(connection, where, Witness(Moment.of(tuple(row))), self.server.settings.keep).baseline

    @contextlib.contextmanager
    def _connected_sibling(self, given: str) -> Iterator[Connection]:
        with self.sibling() as name, contextlib.closing(self.server.connect(name, f"baseline {self.owner}", given)) as connection:
            yield connection

    def _spared(self) -> list[int]:
        """Return the process ids of our own sessions."""
        found = [self._session.real] if self._session is not None else []
        return [connection.info.backend_pid for connection in found if not connection.closed]

    def keep_small(self) -> None:
        """Count one rollback, and vacuum what many of them have blown up when it is time."""
        self._resets += 1
        if self._resets % 100 == 0:
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
        self.witness, self._origin, self.positions, self.moved, self.tainted = None, None, (), False, False
