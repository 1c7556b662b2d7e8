"""What every connection of the application into the sandbox is made of, blocking or asynchronous.

What the application does to transactions, by method or as SQL text, is translated by `savepoints` and sent to the one real
connection; everything else goes through as it is.

psycopg is entered where all its ways lead through, and where it does not matter who waits, a thread or a task:
`BaseConnection._exec_command` (commit, rollback, BEGIN, the savepoints of `transaction()`), `_start_query` (before each statement),
and `BaseCursor._maybe_prepare_gen` (the statement itself). `pgconn` stays the real one, which psycopg's C code needs: what the
application believes of its transaction is told by `info.transaction_status`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import pq

from ..errors import SandboxLimit
from ..statements import Control, controls, writes
from .cursors import Gen, close_portals, exchange, render, sandboxed
from .savepoints import Savepoints
from .turns import Turn, Turns

if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection

    _Base = BaseConnection[Any]
else:
    _Base = object

Status = pq.TransactionStatus


class Shared(Protocol):
    """What connections share: `stack`, of savepoints; `turns`, on the wire; `pgconn`, the real one; `gone`, a finished one."""

    stack: Savepoints
    turns: Turns
    prepared: Any
    pgconn: pq.abc.PGconn
    gone: pq.abc.PGconn
    speaker: int

    @property
    def failed(self) -> bool: ...

    def join(self, connection: Any) -> int: ...


class _Info(psycopg.ConnectionInfo):
    """What `connection.info` tells: the transaction status is the one that the application believes in."""

    connection: Sandboxed

    @property
    def transaction_status(self) -> Status:
        return self.connection.status


class _Seen:
    """A pgconn for Python code that asks it for its status: the one that the application believes in."""

    def __init__(self, connection: Sandboxed) -> None:
        self._connection = connection

    @property
    def transaction_status(self) -> Status:
        return self._connection.status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.pgconn, name)


class Sandboxed(_Base):
    """Mixed into a connection class of psycopg; several connections share one real session, which is an attribute of the class."""

    _session: Shared
    _leading = False  # the statement about to start controls transactions itself
    _query: Any = None  # that statement, where it is known
    lock: Any

    def __init__(self, pgconn: pq.abc.PGconn, *arguments: Any, **options: Any) -> None:
        super().__init__(pgconn, *arguments, **options)
        self._handlers = pgconn.notice_handler, pgconn.notify_handler
        self._owner = self._session.join(self)
        self.lock = Turn(self._session.turns)
        self._prepared = self._session.prepared
        self.portals: set[bytes] = set()  # server-side cursors that end with the block
        self.server_cursor_factory: Any = sandboxed(self.server_cursor_factory)

    def __del__(self, __warn: Any = None) -> None:
        """Stay silent: what psycopg's warns of is a session left open, and this one is not the application's to close."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **_: Any) -> Generator[Any, Any, Any]:
        yield from ()
        return cls(cls._session.pgconn)

    @property
    def status(self) -> Status:
        """The transaction status that the application believes in."""
        real = Status(self.pgconn.transaction_status)
        if real in (Status.UNKNOWN, Status.IDLE):
            return real
        if real is Status.ACTIVE and (self._pipeline or self._session.turns.holds(self.lock)):
            return real
        if not self._session.stack.in_block(self._owner):
            return Status.IDLE
        return Status.INERROR if self._failed else Status.INTRANS

    @property
    def seen(self) -> Any:
        """This connection's pgconn as the application believes it to be, for code that asks it for the transaction status."""
        return _Seen(self)

    @property
    def _failed(self) -> bool:
        return self._session.stack.has_failed(self._owner, self._session.failed)

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

    def shut(self) -> None:
        """Be closed, without a word to the server."""
        self._closed = True
        self.pgconn = self._session.gone

    def _closing(self) -> Gen:
        """Roll an open block back, as the server would if the session ended."""
        if self._session.stack.in_block(self._owner):
            yield from self._exec_command(b"ROLLBACK")

    def _check_connection_ok(self) -> None:
        session = self._session
        if self.pgconn.status != pq.ConnStatus.OK:
            super()._check_connection_ok()
        if not session.stack.entries:
            raise psycopg.OperationalError("the connection is closed: the test that it belongs to has ended")

    def _speak(self) -> None:
        """Begin to use the session, after whichever connection did so last."""
        self._check_connection_ok()
        session = self._session
        if session.speaker != self._owner:
            if self.pgconn.transaction_status == Status.ACTIVE:
                raise SandboxLimit(
                    "another connection has left the session in the middle of a statement",
                    "It began a COPY TO and did not read it to the end; in production that connection could not be used any more.",
                    'Read to the end, or isolate this test with @pytest.mark.dbclone(reset="truncate").',
                )
            session.speaker = self._owner
            self.pgconn.notice_handler, self.pgconn.notify_handler = self._handlers

    def _should_cancel(self) -> bool:
        return super()._should_cancel() and self._session.turns.holds(self.lock)

    def _check_tpc(self) -> None:
        raise _two_phase("a method of the connection")

    def _check_intrans_gen(self, attribute: str) -> Gen:
        if self._num_transactions:
            raise psycopg.ProgrammingError(f"can't change {attribute!r} now: connection.transaction() context in progress")
        if self.status != Status.IDLE:
            raise psycopg.ProgrammingError(f"can't change {attribute!r} now: connection in transaction status {self.status.name}")
        yield from ()

    def _rollback_gen(self) -> Gen:
        if self.status == Status.IDLE and not (self._pipeline or self._num_transactions):
            return
        yield from super()._rollback_gen()

    def _start_query(self) -> Gen:
        self._speak()
        if self._leading:
            return
        if not self._autocommit and not self._session.stack.in_block(self._owner):
            yield from self._send(self._translate("BEGIN", Control("begin", modes=self._modes())))
        else:
            yield from self._before_statement()
        self._note(self._query)

    def _modes(self) -> str:
        return "READ ONLY" if self._read_only else ""

    def _before_statement(self) -> Gen:
        if self._session.stack.ready(self._owner):
            return
        self._refuse_failed()
        commands = self._session.stack.before_statement(self._owner, self._session.failed)
        yield from self._send([render(command) for command in commands])

    def _refuse_failed(self) -> None:
        """Say what the server would, had it not been brought on for other connections since this one's block failed."""
        if self._session.stack.knows_better(self._owner, self._session.failed):
            raise psycopg.errors.InFailedSqlTransaction(
                "current transaction is aborted, commands ignored until end of transaction block"
            )

    def _note(self, query: Any) -> None:
        """Remember that a statement writes, as far as it matters; one that is not known does."""
        stack = self._session.stack
        if stack.watches(self._owner):
            if isinstance(query, bytes):
                query = query.decode(errors="replace")
            elif isinstance(query, psycopg.sql.Composable):
                query = query.as_string(self)
            if not isinstance(query, str) or writes(query):
                stack.wrote(self._owner)

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> Gen:
        self._speak()
        text = command if isinstance(command, str) else command.decode() if isinstance(command, bytes) else command.as_string(self)
        pieces = controls(text)
        if not pieces:
            yield from self._before_statement()
            return (yield from super()._exec_command(command, result_format))
        for piece, control in pieces:
            if control is not None and control.verb in ("commit", "rollback"):
                yield from self._close_portals()
            yield from self._send(self._translate(piece, control) if control is not None else [piece.encode()])
        return None

    def _close_portals(self) -> Gen:
        if self.portals and not self._pipeline and self.status == Status.INTRANS:
            yield from close_portals(self)

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
            raise _two_phase(text[:100])
        if control.verb == "begin":
            if inside:
                self._refuse_failed()
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
            raise psycopg.errors.NoActiveSqlTransaction(f"{text.split()[0].upper()} can only be used in transaction blocks")
        if control.verb != "rollback_to" or owner in stack.fallen:
            self._refuse_failed()
        return [render(command) for command in stack.savepoint(owner, control, failed)]


def _two_phase(statement: str) -> SandboxLimit:
    return SandboxLimit(
        "two-phase commit inside a rollback",
        f"The statement is: {statement}. A prepared transaction outlives its session, so no rollback could undo it.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )


class Block:
    """Mixed into psycopg's transaction blocks: what they believe of the transaction, and that no limit is lost in one.

    psycopg logs what goes wrong in rolling a block back, and goes on.
    """

    _limit: SandboxLimit | None = None

    def __init__(self, connection: Any, *arguments: Any) -> None:
        super().__init__(connection, *arguments)  # type: ignore[call-arg]
        self.pgconn = connection.seen

    def _rollback_gen(self, error: BaseException | None) -> Gen:
        try:
            return (yield from super()._rollback_gen(error))  # type: ignore[misc]
        except SandboxLimit as limit:
            self._limit = limit
            raise

    def _exit_gen(self, *error: Any) -> Gen:
        swallowed = yield from super()._exit_gen(*error)  # type: ignore[misc]
        if self._limit is not None:
            raise self._limit
        return swallowed
