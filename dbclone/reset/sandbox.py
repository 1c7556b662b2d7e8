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
from psycopg import pq, sql
from psycopg.rows import tuple_row

from ..errors import SandboxLimit
from ..statements import Control, controls
from .cursors import Gen, Prepared, exchange, render, sandboxed
from .savepoints import CHECK, Savepoints
from .writes import WRITERS, never_inside, only_inside

_DEFERRABLE = """SELECT n.nspname::text, c.conname::text, c.condeferred FROM pg_catalog.pg_constraint c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace WHERE c.condeferrable"""
_TAGS = {
    "begin": "BEGIN",
    "start": "START TRANSACTION",
    "modes": "SET",
    "constraints": "SET CONSTRAINTS",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "rollback_to": "ROLLBACK",
    "savepoint": "SAVEPOINT",
    "release": "RELEASE",
}
IDLE, INTRANS, INERROR = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR


_MANY = 500  # prepared statements that nobody uses any more


class Session:
    """The real connection that the sandboxed ones share, with the stack of savepoints inside its transaction.

    Arguments: `real`, a psycopg connection in autocommit mode that nobody else uses.
    """

    def __init__(self, real: psycopg.Connection[Any]) -> None:
        self.real = real
        self.stack = _stack(real)
        self.lock = real.lock
        self.limited = False  # whether something was refused that only a stronger reset allows
        self._prepared = 0  # statements that closed connections have left
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
            self.left(connection._prepared.count)
        self._connections.clear()
        if self._prepared > _MANY and self.real.info.transaction_status == IDLE:
            self._prepared = 0
            self.real.execute("DEALLOCATE ALL", prepare=False)

    def left(self, prepared: int) -> None:
        """Count the statements that a connection had prepared when it was closed."""
        self._prepared += prepared


def _stack(real: psycopg.Connection[Any]) -> Savepoints:
    """Return an empty stack that knows what it has to know of the schema."""
    with real.cursor(row_factory=tuple_row) as cursor:
        writers = frozenset(name for (name,) in cursor.execute(WRITERS.encode()).fetchall())
        constraints = cursor.execute(_DEFERRABLE.encode()).fetchall()
    names = sorted({(schema, name) for schema, name, deferred in constraints if deferred})
    listed = sql.SQL(", ").join(sql.Identifier(*each) for each in names)
    deferred = (sql.SQL("SET CONSTRAINTS {} DEFERRED").format(listed) if names else sql.SQL(CHECK)) if constraints else sql.SQL("")
    return Savepoints(writers=writers, deferred=deferred.as_string(real))


class _Info(psycopg.ConnectionInfo):
    """What `connection.info` tells: the transaction status is the one that the application believes in."""

    connection: SandboxConnection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return self.connection.status


class _StatusOf:
    """A pgconn for psycopg's Transaction, which asks it for nothing but its two kinds of status."""

    def __init__(self, connection: SandboxConnection) -> None:
        self._connection = connection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return self._connection.status

    @property
    def status(self) -> pq.ConnStatus:
        return pq.ConnStatus.BAD if self._connection.closed else pq.ConnStatus.OK

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.pgconn, name)


class _Pipeline(psycopg.Pipeline):
    """A pipeline that says when it ends a transaction."""

    def _enqueue_sync(self) -> None:
        super()._enqueue_sync()
        self._conn._segment = None


class SandboxConnection(psycopg.Connection[Any]):
    """A connection as the application sees it; several share one real session."""

    _session: Session
    _owner: int
    _prepared: Prepared
    _upcoming: str | None = None  # the text of the statement about to start
    _segment: psycopg.Pipeline | None = None  # it has begun a transaction that its next sync ends
    _leading = False  # the statement about to start controls transactions itself

    @classmethod
    def of(cls, session: Session) -> SandboxConnection:
        """Return a new connection into `session`."""
        connection = cls(session.real.pgconn, row_factory=tuple_row)
        connection.server_cursor_factory = sandboxed(psycopg.ServerCursor)
        session.owners += 1
        connection._session, connection._owner = session, session.owners
        connection.lock = session.lock
        connection._prepared = Prepared(connection._owner)
        return connection

    def __del__(self, __warn: Any = None) -> None:
        """Stay silent: what psycopg's warns of is a session left open, and this one is not the application's to close."""

    @property
    def status(self) -> pq.TransactionStatus:
        """The transaction status that the application believes in."""
        real = pq.TransactionStatus(self.pgconn.transaction_status)
        if self._closed:
            return pq.TransactionStatus.UNKNOWN
        if real not in (INTRANS, INERROR):
            return real
        stack = self._session.stack
        if not stack.in_block(self._owner):
            return IDLE
        return INERROR if stack.has_failed(self._owner, real == INERROR) else INTRANS

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
        try:
            if self._session.stack.in_block(self._owner):
                with self.lock:
                    self.wait(self._exec_command(b"ROLLBACK"))
        finally:
            self._closed = True
            self._session.left(self._prepared.count)

    def wait(self, *arguments: Any, **options: Any) -> Any:
        if self._closed:
            raise psycopg.OperationalError("the connection is closed")
        try:
            return super().wait(*arguments, **options)
        except SandboxLimit:
            self._session.limited = True
            raise

    def _check_connection_ok(self) -> None:
        if self._closed:
            raise psycopg.OperationalError("the connection is closed")
        super()._check_connection_ok()

    def _check_intrans_gen(self, attribute: str) -> Gen:
        self._check_connection_ok()
        if self.status != IDLE:
            raise psycopg.ProgrammingError(f"can't change {attribute!r} now: connection in transaction status {self.status.name}")
        yield from ()

    def _start_query(self) -> Gen:
        self._check_connection_ok()
        if not self._autocommit and not self._session.stack.in_block(self._owner):
            yield from self._send(self._translate("BEGIN", Control("begin", modes=self._modes())))
        if not self._leading:
            yield from self._before_statement(self._upcoming)

    def _modes(self) -> str:
        level = self._isolation_level.name.replace("_", " ") if self._isolation_level is not None else ""
        return level + {None: "", True: " READ ONLY", False: " READ WRITE"}[self._read_only]

    def _before_statement(self, text: str | None) -> Gen:
        if text is not None and not self._session.stack.in_block(self._owner):
            if self._pipeline and self._segment is self._pipeline:
                return  # up to the next sync all are one transaction, behind one guard
            self._segment = self._pipeline
            if command := only_inside(text):
                raise psycopg.errors.NoActiveSqlTransaction(f"{command} can only be used in transaction blocks")
            if command := never_inside(text):
                raise SandboxLimit(
                    f"{command} inside a rollback",
                    f"The statement is: {text.strip()[:100]}. In the one transaction that will be rolled back it cannot do its work.",
                    'Isolate this test with @pytest.mark.dbclone(reset="truncate"), or "clone".',
                )
        commands = self._session.stack.before_statement(self._owner, self._session.failed, text)
        yield from self._send([render(command) for command in commands])

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> Gen:
        self._check_connection_ok()
        text = command if isinstance(command, str) else command.decode() if isinstance(command, bytes) else command.as_string(self)
        pieces = controls(text)
        if not pieces:
            if not self._pipeline:
                yield from self._before_statement(text)
            return (yield from super()._exec_command(command, result_format))
        for piece, control in pieces:
            if control is not None:
                yield from self._check(control)
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

    def _check(self, control: Control) -> Gen:
        """Before a COMMIT, check the constraints that wait for it; if one is violated, the block is rolled back as in production."""
        stack, owner = self._session.stack, self._owner
        if control.verb != "commit" or not (commands := stack.check(owner, self._session.failed)):
            return
        try:
            yield from self._send([*map(render, commands)])
        except psycopg.Error:
            yield from self._send([*map(render, stack.end(owner, True, keep=False))])
            raise

    def _translate(self, text: str, control: Control) -> list[bytes]:
        """Return what is sent for a statement that controls transactions; nothing where production would only warn."""
        stack, owner, failed = self._session.stack, self._owner, self._session.failed
        inside = stack.in_block(owner)
        if control.verb == "two_phase":
            raise _two_phase(f"The statement is: {text[:100]}.")
        if control.verb == "begin":
            if inside:  # the server warns, or refuses in an aborted transaction, as in production; modes are taken all the same
                return [*map(render, stack.modes(owner, failed, control.modes)), b"BEGIN"]
            return [*map(render, stack.begin(owner, failed, control.modes))]
        if control.verb in ("commit", "rollback") and not control.chain:
            return [*map(render, stack.end(owner, failed, keep=control.verb == "commit"))]
        if control.verb in ("modes", "constraints") and not inside:
            return []
        if not inside:
            raise psycopg.errors.NoActiveSqlTransaction(f"{text.split()[0].upper()} can only be used in transaction blocks")
        if control.chain:
            modes = "" if stack.has_failed(owner, failed) else stack.modes_of(owner)
            commands = stack.end(owner, failed, keep=control.verb == "commit")
            return [*map(render, commands + stack.begin(owner, False, modes))]
        if control.verb == "constraints":
            return [*map(render, stack.before_statement(owner, failed, text)), text.encode()]
        if control.verb == "modes":
            return [*map(render, stack.modes(owner, failed, control.modes))]
        return [*map(render, stack.savepoint(owner, failed, control))]

    def _tpc_begin_gen(self, xid: Any) -> Gen:
        raise _two_phase("tpc_begin() was called.")
        yield

    def _tag(self, text: str, control: Control) -> str:
        """Return the command tag with which production would answer a statement that controls transactions."""
        if control.verb == "commit" and self._session.stack.has_failed(self._owner, self._session.failed):
            return "ROLLBACK"
        return _TAGS.get("start" if text[:5].upper() == "START" else control.verb, "")

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """As psycopg's."""
        if self._pipeline is None:
            self._pipeline = _Pipeline(self)
        with super().pipeline() as pipeline:
            yield pipeline

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


def _two_phase(detail: str) -> SandboxLimit:
    return SandboxLimit(
        "two-phase commit inside a rollback",
        f"{detail} A prepared transaction outlives its session, so no rollback could undo it.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )
