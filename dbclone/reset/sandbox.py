"""One real connection inside one outer transaction, and the psycopg connections that an application sees of it.

What the application does to transactions, by method or as SQL text, is translated by `savepoints` and sent to the one real
connection; everything else goes through as it is. Closing a connection rolls its open block back, as the server would, and keeps
the session.

psycopg is entered where all its ways lead through: `Connection._exec_command` (commit, rollback, BEGIN, the savepoints of
`transaction()`), `Connection._start_query` (before each statement) and `Cursor._maybe_prepare_gen` (the statement itself).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import tuple_row

from ..errors import SandboxLimit
from ..statements import Control, controls
from .cursors import Gen, exchange, render, sandboxed
from .savepoints import Savepoints

IDLE, INTRANS, INERROR = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR


class Session:
    """The real connection that the sandboxed ones share, with the stack of savepoints inside its transaction.

    Arguments: `real`, a psycopg connection in autocommit mode that nobody else uses.
    """

    def __init__(self, real: psycopg.Connection[Any]) -> None:
        self.real = real
        self.stack = Savepoints()
        self.lock = real.lock
        self.prepared = real._prepared
        self.owners = 0
        self.audits = 0  # how often the statements of the reset had to be prepared
        self._connections: weakref.WeakSet[SandboxConnection] = weakref.WeakSet()

    @property
    def failed(self) -> bool:
        """Whether the real transaction is aborted."""
        return self.real.pgconn.transaction_status == INERROR

    def connect(self, **options: Any) -> SandboxConnection:
        """Return a new connection of the application into the sandbox. `options` are those of `psycopg.connect` that are not
        about where to connect: autocommit, row_factory, cursor_factory, context, prepare_threshold."""
        connection = SandboxConnection.of(self)
        connection._autocommit = bool(options.get("autocommit", False))
        connection.row_factory = options.get("row_factory") or connection.row_factory
        connection.cursor_factory = options.get("cursor_factory") or connection.cursor_factory
        if options.get("context") is not None:
            connection._adapters = psycopg.adapt.AdaptersMap(options["context"].adapters)
        self._connections.add(connection)
        return connection

    def disconnect(self) -> None:
        """Close what the application left open: a connection kept for later must fail rather than write outside any sandbox."""
        for connection in list(self._connections):
            connection._closed = True
        self._connections.clear()


class _Info(psycopg.ConnectionInfo):
    """What `connection.info` tells: the transaction status is the one that the application believes in."""

    connection: SandboxConnection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return self.connection.status


class _StatusOf:
    """A pgconn for psycopg's Transaction, which asks it for nothing but its status."""

    def __init__(self, connection: SandboxConnection) -> None:
        self._connection = connection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return self._connection.status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.pgconn, name)


class SandboxConnection(psycopg.Connection[Any]):
    """A connection as the application sees it; several share one real session."""

    _session: Session
    _owner: int
    _leading = False  # the statement about to start controls transactions itself

    @classmethod
    def of(cls, session: Session) -> SandboxConnection:
        """Return a new connection into `session`."""
        connection = cls(session.real.pgconn, row_factory=tuple_row)
        session.owners += 1
        connection._session, connection._owner = session, session.owners
        connection.lock = session.lock
        connection._prepared = session.prepared
        return connection

    def __del__(self, __warn: Any = None) -> None:
        """Stay silent: what psycopg's warns of is a session left open, and this one is not the application's to close."""

    @property
    def status(self) -> pq.TransactionStatus:
        """The transaction status that the application believes in."""
        real = pq.TransactionStatus(self.pgconn.transaction_status)
        if self._closed:
            return pq.TransactionStatus.UNKNOWN
        if real not in (INTRANS, INERROR) or self._session.stack.in_block(self._owner):
            return real
        return IDLE

    @property
    def closed(self) -> bool:
        return self._closed or self.pgconn.status == pq.ConnStatus.BAD

    @property
    def info(self) -> psycopg.ConnectionInfo:
        info = _Info(self.pgconn)
        info.connection = self
        return info

    @property
    def cursor_factory(self) -> type[Any]:
        return self._cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, factory: type[Any]) -> None:
        self._cursor_factory: type[Any] = sandboxed(factory)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close for the application: an open block is rolled back, the session stays."""
        if self.closed:
            return
        if self._session.stack.in_block(self._owner):
            with self.lock:
                self.wait(self._exec_command(b"ROLLBACK"))
        self._closed = True

    def _check_connection_ok(self) -> None:
        if self._closed:
            raise psycopg.OperationalError("the connection is closed")
        super()._check_connection_ok()

    def _check_intrans_gen(self, attribute: str) -> Gen:
        if self.status != IDLE:
            raise psycopg.ProgrammingError(f"can't change {attribute!r} now: connection in transaction status {self.status.name}")
        yield from ()

    def _start_query(self) -> Gen:
        self._check_connection_ok()
        if self._leading:
            return
        self._refuse_busy()
        if not self._autocommit and not self._session.stack.in_block(self._owner):
            yield from self._send(self._translate("BEGIN", Control("begin", modes=self._modes())))
        else:
            yield from self._before_statement()

    def _refuse_busy(self) -> None:
        """Refuse what the session could not be asked now, before the stack of savepoints takes it for done."""
        if not self._pipeline and self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            raise psycopg.OperationalError("another command of this session is in progress: a COPY or a stream has not ended")

    def _modes(self) -> str:
        return "READ ONLY" if self._read_only else ""

    def _before_statement(self) -> Gen:
        commands = self._session.stack.before_statement(self._owner, self._session.failed)
        yield from self._send([render(command) for command in commands])

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> Gen:
        self._check_connection_ok()
        self._refuse_busy()
        text = command if isinstance(command, str) else command.decode() if isinstance(command, bytes) else command.as_string(self)
        pieces = controls(text)
        if not pieces:
            return (yield from super()._exec_command(command, result_format))
        for piece, control in pieces:
            yield from self._send(self._translate(piece, control) if control is not None else [piece.encode()])
        return None

    def _send(self, commands: list[bytes]) -> Gen:
        """Send commands in one message; one by one in a pipeline, which takes only single commands."""
        if not commands:
            return
        if self._pipeline:
            for command in commands:
                yield from super()._exec_command(command)
            return
        yield from exchange(self.pgconn, commands)

    def _translate(self, text: str, control: Control) -> list[bytes]:
        """Return what is sent for a statement that controls transactions; nothing where production would only warn."""
        stack, owner, failed = self._session.stack, self._owner, self._session.failed
        inside = stack.in_block(owner)
        if control.verb == "two_phase":
            raise SandboxLimit(
                "two-phase commit inside a rollback",
                f"The statement is: {text[:100]}. A prepared transaction outlives its session, so no rollback could undo it.",
                'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
            )
        if control.verb == "begin":
            if inside:
                return [b"BEGIN"]  # the server warns, or refuses in an aborted transaction, as in production
            sent = [render(command) for command in stack.begin(owner, failed)]
            return [*sent, b"SET TRANSACTION READ ONLY"] if "READ ONLY" in control.modes else sent
        if control.verb in ("commit", "rollback"):
            if not inside:
                return []
            commands = stack.end(owner, failed, keep=control.verb == "commit")
            if control.chain:
                commands += stack.begin(owner, False)
            return [render(command) for command in commands]
        if not inside:
            what = {"release": "RELEASE SAVEPOINT", "rollback_to": "ROLLBACK TO SAVEPOINT"}.get(control.verb, "SAVEPOINT")
            raise psycopg.errors.NoActiveSqlTransaction(f"{what} can only be used in transaction blocks")
        return [*map(render, stack.clear_guard(failed)), *map(render, stack.savepoint(owner, control))]

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        """As psycopg's: a block, or a savepoint inside one."""
        block = psycopg.Transaction(self, savepoint_name, force_rollback)
        block.pgconn = _StatusOf(self)  # type: ignore[assignment]
        if self._pipeline:
            with self.pipeline(), block, self.pipeline():
                yield block
        else:
            with block:
                yield block
