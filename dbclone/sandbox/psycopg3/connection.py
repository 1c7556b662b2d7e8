"""What every connection of the application into the sandbox is made of, blocking or asynchronous.

What the application does to transactions, by method or as SQL text, is translated by `savepoints`
and sent to the one real connection; everything else goes through as it is.

psycopg is entered where all its ways lead through, and where it does not matter who waits, a thread
or a task: `BaseConnection._exec_command` (commit, rollback, BEGIN, the savepoints of
`transaction()`), `_start_query` (before each statement), and `BaseCursor._maybe_prepare_gen` (the
statement itself). `pgconn` stays the real one, which psycopg's C code needs: what the application
believes of its transaction is told by `info.transaction_status`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import pq

from ...errors import SandboxLimit
from ...server.connection import Gen, exchange
from ...sql.analysis import Control, analyze
from ..savepoints import Command, Savepoints
from ..session_lock import ConnectionLock, SessionLock
from .cursor import close_portals, render, sandboxed_class
from .prepared import Prepared


class Shared(Protocol):
    """What connections share: `stack`, of savepoints; `session_lock`, on the wire; `pgconn`, the
    real one; `gone`, a finished one."""

    stack: Savepoints
    session_lock: SessionLock
    limited: str
    real: psycopg.Connection[Any]
    pgconn: pq.abc.PGconn
    gone: pq.abc.PGconn
    speaker: int

    @property
    def failed(self) -> bool: ...

    def number(self) -> int: ...

    def join(self, number: int, connection: Any) -> None: ...

    def note_statement(self, text: str) -> None: ...

    def prepared(self) -> Prepared: ...

    def keep_prepared(self, prepared: Prepared) -> None: ...


TAGS = {
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


class SandboxInfo(psycopg.ConnectionInfo):
    """What `connection.info` tells: the transaction status is the one that
    the application believes in."""

    connection: Any

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return pq.TransactionStatus(self.connection.status)


class VirtualPGconn:
    """A pgconn for Python code that asks it for its status:
    the one that the application believes in."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def transaction_status(self) -> pq.TransactionStatus:
        return pq.TransactionStatus(self._connection.status)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.pgconn, name)


class PipelineMixin:
    """Mixed into psycopg's pipelines: they say when they end a transaction."""

    _conn: Any

    def _enqueue_sync(self) -> None:
        super()._enqueue_sync()  # type: ignore[misc]
        self._conn._segment = None


class TransactionMixin:
    """Mixed into psycopg's transaction blocks: what they believe of the transaction, and that no
    limit is lost in one.

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


def never(command: str, text: str) -> SandboxLimit:
    return SandboxLimit(
        f"{command} inside a rollback",
        f"The statement is: {text.strip()[:100]}. In the one transaction that will be rolled"
        f" back it cannot do its work.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate"), or "clone".',
    )


def outside(command: str, text: str) -> SandboxLimit:
    return SandboxLimit(
        f"{command} in a test",
        f"The statement is: {text.strip()[:100]}. It reaches beyond the clone, to other databases"
        " or the whole server, where no reset undoes it.",
        "Leave it out of the test, or let code that does it be replaced in the test.",
    )


def two_phase(statement: str) -> SandboxLimit:
    return SandboxLimit(
        "two-phase commit inside a rollback",
        f"The statement is: {statement}. A prepared transaction outlives its session, so no"
        f" rollback could undo it.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )


if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection

    _Base = BaseConnection[Any]
else:
    _Base = object

Status = pq.TransactionStatus


class Sandboxed(_Base):
    """Mixed into a connection class of psycopg; several connections share one real session, which
    is an attribute of the class."""

    _session: Shared
    _leading = False  # the statement about to start controls transactions itself
    _upcoming: str | None = None  # its text
    _segment: Any = None  # a pipeline that has begun a transaction, which its next sync ends
    _prepared: Prepared
    lock: Any

    def __init__(self, pgconn: pq.abc.PGconn, *arguments: Any, **options: Any) -> None:
        super().__init__(pgconn, *arguments, **options)
        self._handlers = pgconn.notice_handler, pgconn.notify_handler
        session = self._session
        owner = self._owner = session.number()
        self.lock = ConnectionLock(session.session_lock, lambda: session.stack.writing(owner))
        self._prepared = session.prepared()
        self.portals: set[bytes] = set()  # server-side cursors that end with the block
        self.server_cursor_factory: type[Any] = sandboxed_class(self.server_cursor_factory)  # type: ignore[arg-type]
        session.join(owner, self)

    def __del__(self, __warn: Any = None) -> None:
        """Stay silent: what psycopg's warns of is a session left open, and this one is not the
        application's to close."""
        with contextlib.suppress(AttributeError):  # it may not have been completed
            self.shut()

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
        if real is Status.ACTIVE and (
            self._pipeline or self._session.session_lock.holds(self.lock)
        ):
            return real
        if not self._session.stack.in_block(self._owner):
            return Status.IDLE
        return Status.INERROR if self._failed else Status.INTRANS

    @property
    def seen(self) -> Any:
        """This connection's pgconn as the application believes it to be, for code that asks it for
        the transaction status."""
        return VirtualPGconn(self)

    @property
    def _failed(self) -> bool:
        return self._session.stack.has_failed(self._owner, self._session.failed)

    @property
    def info(self) -> psycopg.ConnectionInfo:
        info = SandboxInfo(self.pgconn)
        info.connection = self
        return info

    @property
    def cursor_factory(self) -> type[Any]:
        return self._cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, factory: type[Any]) -> None:
        self._cursor_factory: type[Any] = sandboxed_class(factory)  # type: ignore[arg-type]

    def shut(self) -> None:
        """Be closed, without a word to the server."""
        if not self._closed:
            self._session.keep_prepared(self._prepared)
        self._closed, self.pgconn = True, self._session.gone

    def _is_forked(self) -> bool:
        """Return whether this is a fork of the process whose connection this is; then forget it,
        without a word to anybody."""
        if left := self._session.session_lock.home.forked:
            self.shut()
        return left

    def _closing(self) -> Gen:
        """Roll an open block back, as the server would if the session ended."""
        if self._session.stack.in_block(self._owner):
            yield from self._exec_command(b"ROLLBACK")

    def _check_connection_ok(self) -> None:
        session = self._session
        if self.pgconn.status != pq.ConnStatus.OK:
            super()._check_connection_ok()
        if not session.stack.entries:
            raise psycopg.OperationalError(
                "the connection is closed: the test that it belongs to has ended"
            )

    def _speak(self) -> None:
        """Begin to use the session, after whichever connection did so last."""
        self._check_connection_ok()
        session = self._session
        if session.speaker != self._owner:
            if self.pgconn.transaction_status == Status.ACTIVE:
                raise SandboxLimit(
                    "another connection has left the session in the middle of a statement",
                    "It began a COPY TO and did not read it to the end; in production that"
                    " connection could not be used any more.",
                    "Read to the end, or isolate this test with"
                    ' @pytest.mark.dbclone(reset="truncate").',
                )
            session.speaker = self._owner
            self.pgconn.notice_handler, self.pgconn.notify_handler = self._handlers

    def _should_cancel(self) -> bool:
        return super()._should_cancel() and self._session.session_lock.holds(self.lock)

    def _check_tpc(self) -> None:
        with self._noting():
            raise two_phase("a method of the connection")

    def _check_intrans_gen(self, attribute: str) -> Gen:
        if self.status != Status.IDLE:
            block = "connection.transaction() context in progress"
            why = (
                block
                if self._num_transactions
                else f"connection in transaction status {self.status.name}"
            )
            raise psycopg.ProgrammingError(f"can't change {attribute!r} now: {why}")
        yield from ()

    def _rollback_gen(self) -> Gen:
        if self.status != Status.IDLE or self._pipeline or self._num_transactions:
            yield from super()._rollback_gen()

    def _start_query(self) -> Gen:
        self._speak()
        self._refuse_busy()
        text = self._upcoming
        if not self._session.stack.ready(self._owner):
            if not self.autocommit and not self._session.stack.in_block(self._owner):
                yield from self._send(
                    self._translate("BEGIN", Control("begin", modes=self._modes()))
                )
            if not self._leading:
                yield from self._before_statement(text)
        if text and not self._leading:
            self.portals.update(analyze(text).declares)

    def _refuse_busy(self) -> None:
        """Refuse what the session could not be asked now, before the stack of savepoints takes it
        for done."""
        if not self._pipeline and self.pgconn.transaction_status == Status.ACTIVE:
            raise psycopg.OperationalError(
                "another command of this session is in progress: a COPY or a stream has not ended"
            )

    def _modes(self) -> str:
        level = (
            self.isolation_level.name.replace("_", " ") if self.isolation_level is not None else ""
        )
        return level + {None: "", True: " READ ONLY", False: " READ WRITE"}[self.read_only]

    def _before_statement(self, text: str | None) -> Gen:
        session, known = self._session, text
        if text is not None and not session.stack.in_block(self._owner):
            if self._pipeline and self._segment is self._pipeline:
                return  # up to the next sync all are one transaction, behind one guard
            self._segment = self._pipeline
            known = text if self._pipeline is None else None
            asked = analyze(text)
            if command := asked.only_inside:
                raise psycopg.errors.NoActiveSqlTransaction(
                    f"{command} can only be used in transaction blocks"
                )
            if command := asked.never_inside:
                if asked.leaves_database:
                    raise outside(command, text)  # not noted: no stronger reset allows it either
                with self._noting():
                    raise never(command, text)
        with self._noting():
            commands = session.stack.before_statement(self._owner, session.failed, known)
        yield from self._send([render(command) for command in commands])
        if self.portals and not self._pipeline and not session.stack.in_block(self._owner):
            # Of several statements in one string, which were a transaction of their own
            yield from close_portals(self)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Note that the application met a limit of the sandbox, even if it catches the error."""
        try:
            yield
        except SandboxLimit as error:
            self._session.limited = error.message
            raise

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> Gen:
        self._speak()
        self._refuse_busy()
        text = (
            command
            if isinstance(command, str)
            else command.decode()
            if isinstance(command, bytes)
            else command.as_string(self)
        )
        pieces = analyze(text).controls
        if not pieces:
            if not self._pipeline:
                yield from self._before_statement(text)
            return (yield from super()._exec_command(command, result_format))
        for piece, control in pieces:
            if control is not None:
                yield from self._check(control)
            yield from self._send(
                self._translate(piece, control) if control is not None else [piece.encode()]
            )
        return None

    def _send(self, commands: list[bytes]) -> Gen:
        """Send all in one message; one by one in a pipeline, which takes single commands only."""
        if not commands:
            return
        if self._pipeline:
            for command in commands:
                yield from super()._exec_command(command)
            return
        yield from exchange(self.pgconn, commands)

    def _check(self, control: Control) -> Gen:
        """Before a block ends, end its cursors; before a COMMIT, check the constraints that wait
        for it. If one is violated, the block is rolled back as in production."""
        stack, owner = self._session.stack, self._owner
        if (
            control.verb in ("commit", "rollback")
            and self.portals
            and not self._pipeline
            and self.status == Status.INTRANS
        ):
            yield from close_portals(self)
        if control.verb != "commit" or not (commands := stack.check(owner, self._session.failed)):
            return
        try:
            yield from self._send([*map(render, commands)])
        except psycopg.Error:
            yield from self._send([*map(render, stack.end(owner, True, keep=False))])
            raise

    def _translate(self, text: str, control: Control) -> list[bytes]:
        """Return what is sent for a statement that controls transactions; nothing where production
        would only warn."""
        with self._noting():
            return [*map(render, self._commands(text, control))]

    def _commands(self, text: str, control: Control) -> list[Command]:
        stack, owner, failed = self._session.stack, self._owner, self._session.failed
        inside = stack.in_block(owner)
        if control.verb == "two_phase":
            raise two_phase(text[:100])
        if control.verb == "begin":
            # The server warns, or refuses in an aborted transaction, as in production; modes are
            # taken all the same.
            if inside:
                return [*stack.modes(owner, failed, control.modes), ("", "BEGIN")]
            return stack.begin(owner, failed, control.modes)
        if control.verb in ("commit", "rollback") and not control.chain:
            return stack.end(owner, failed, keep=control.verb == "commit")
        if control.verb in ("modes", "constraints") and not inside:
            return stack.end(owner, failed, keep=True)  # which does nothing outside a block
        if not inside:
            what = {
                "release": "RELEASE SAVEPOINT",
                "rollback_to": "ROLLBACK TO SAVEPOINT",
                "savepoint": "SAVEPOINT",
            }
            raise psycopg.errors.NoActiveSqlTransaction(
                f"{what.get(control.verb, f'{control.verb.upper()} AND CHAIN')} can only be"
                f" used in transaction blocks"
            )
        if control.chain:
            modes = "" if stack.has_failed(owner, failed) else stack.modes_of(owner)
            return [
                *stack.end(owner, failed, keep=control.verb == "commit"),
                *stack.begin(owner, False, modes),
            ]
        if control.verb == "constraints":
            return [*stack.before_statement(owner, failed, text), ("", text)]
        if control.verb == "modes":
            return stack.modes(owner, failed, control.modes)
        return stack.savepoint(owner, failed, control)

    def _tag(self, text: str, control: Control) -> str:
        """Return the command tag with which production would answer a statement
        that controls transactions."""
        if control.verb == "commit" and self._failed:
            return "ROLLBACK"
        return TAGS.get("start" if analyze(text).verb == "START" else control.verb, "")
