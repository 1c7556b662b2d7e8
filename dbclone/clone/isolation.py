"""A clone as one test sees it: what the `dbclone` fixture is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from ..adapters import handles
from ..errors import SandboxLimit
from ..reset.rollback import Level
from ..sandbox.psycopg3.connection import Sandboxed
from ..sandbox.session import Session
from ..server.connection import connect_async, hang_up
from ..server.dsn import Dsn

Connection = psycopg.Connection[Any]


@dataclass(repr=False)
class Isolation:
    """One test's state, and ways to look at it.

    Attributes: `name` of the database; `url`, which leads there as the application's role; `reset`,
    how this test is undone ("rollback", "truncate", "clone", "drop" or "none"); `test`, its id;
    `handle`, the application's database handle or None; `kept`, what it will be kept for, if it
    will be; `dsn`, where its own connections lead. Made by `Clone.isolated`.
    """

    name: str
    url: str
    reset: str
    test: str
    handle: Any
    _open: Callable[..., Connection]
    _take: Callable[[str], None]
    _come_back: Callable[[str], None]
    _session: Session | None = None
    kept: str = ""
    _own: Connection | None = None
    dsn: Dsn = field(default=Dsn(()), repr=False)
    _opened: list[Connection] = field(default_factory=list)
    _opened_async: list[psycopg.AsyncConnection[Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<dbclone {self.name} reset={self.reset}>"

    def connect(self, **options: Any) -> Connection:
        """Return a new psycopg connection that sees what the test sees: into the sandbox under
        rollback, a real one otherwise.

        A real one is of the role that builds, whatever the application's: it sees and writes
        everything. Arguments: `options` of `psycopg.connect`, such as autocommit or row_factory. It
        is closed at the end of the test.
        """
        connection: Connection = (
            self._open(**options) if self._session is None else self._session.connect(**options)
        )
        self._opened.append(connection)
        return connection

    async def aconnect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        """As `connect`, for asyncio: return a new psycopg.AsyncConnection
        that sees what the test sees."""
        if self._session is not None:
            connection: psycopg.AsyncConnection[Any] = await self._session.aconnect(**options)
        else:
            connection = await connect_async(self.dsn, **options)
        self._opened_async.append(connection)
        return connection

    @property
    def connection(self) -> Connection:
        """The test's own connection, in autocommit mode, opened at its first use."""
        if self._own is None or self._own.closed:
            if self._session is None:  # a test may be slow between two looks
                self._own = self._open(autocommit=True, lasts=True)
                self._opened.append(self._own)
            else:
                self._own = self.connect(autocommit=True)
        return self._own

    def execute(self, query: Any, parameters: Any = None) -> psycopg.Cursor[Any]:
        """Run one query on `connection` and return its cursor."""
        return self.connection.execute(query, parameters)

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo at the end of the block what happened in it, whoever wrote it. Raises
        dbclone.SandboxLimit outside a rollback."""
        if self._session is None:
            raise SandboxLimit(
                f"savepoint() needs a rollback, and this test is isolated by {self.reset!r}",
                "What other connections have committed cannot be undone up to a point in the"
                " middle of a test.",
                "Remove reset= from the test's marker.",
            )
        level = Level(self._session)
        level.enter()
        try:
            yield
        finally:
            level.leave()

    def keep(self, label: str = "") -> None:
        """When this isolation ends, keep what was written in a database of its own instead of
        undoing it: for a person to look at (`python -m dbclone status` lists it), named after
        `label` (default: the test). Tests go on with a fresh clone."""
        self.kept = label or self.test or "a block"

    def snapshot(self, label: str) -> None:
        """Put the clone's committed state aside as `label`; it lasts as long as the clone. See
        `Clone.snapshot`."""
        self.close()
        self._take(label)

    def restore(self, label: str) -> None:
        """Come back to the state that `snapshot` put aside, any number of times. See
        `Clone.restore`."""
        self.close()
        self._come_back(label)

    @contextlib.contextmanager
    def lend(self, handle: Any) -> Iterator[None]:
        """Let another database handle of the application, already pointed at `url`, take part in
        this isolation for the block."""
        with (
            handles.sandboxed(handle, self._session)
            if self._session is not None
            else contextlib.nullcontext()
        ):
            yield

    def close(self) -> None:
        """Close the connections that were opened here."""
        for connection in (*self._opened, *self._opened_async):
            if isinstance(connection, Sandboxed):
                connection.shut()
            else:
                hang_up(connection.pgconn)
        self._opened.clear()
        self._opened_async.clear()
