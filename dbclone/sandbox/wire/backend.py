"""What a sandbox answers to messages of PostgreSQL's wire protocol: query strings and function
calls, run on a SandboxConnection.

The connection does for a client's query strings what it does for an application's own: the state
machine, and the lock around each message to the one real session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
from psycopg import generators, pq, sql

from ...errors import SandboxLimit
from ...sql.analysis import Control, analyze
from . import messages

if TYPE_CHECKING:
    from ..session import Session

LIMIT = "DBC01"  # the SQLSTATE under which a SandboxLimit travels
_ENCODING, _DEFAULT = b"client_encoding", b"default_transaction_read_only"
_READ_ONLY = "SET TRANSACTION READ ONLY"
# The server refuses to discard all in a transaction; temporary tables, locks and prepared
# statements may be others' here.
_DISCARDED = b"SET SESSION AUTHORIZATION DEFAULT; RESET ALL"


class _Refused(Exception):
    """An error that the client is told, by its fields;
    what follows in the same query string is not run."""

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self.fields = fields


class Backend:
    """One client's session as it sees it.

    Arguments: `session`, the sandbox; `listen`, sends the client what has been answered so far and
    returns its next message, during a COPY; `encoding`, which the client begins with if it does not
    say another.
    """

    def __init__(
        self, session: Session, listen: Callable[[], tuple[bytes, bytes]], encoding: bytes | None
    ) -> None:
        self._connection = session.connect(autocommit=True)
        self._listen = listen
        self._real = session.real
        self._pgconn = self._real.pgconn
        self._answer: list[bytes] = []
        self._encoding = encoding  # which the client believes in
        self._known: dict[bytes, bytes] = {}  # parameters that the client has been told
        self._shift = 0  # characters before the running statement in the client's string
        self._functions: dict[int, bytes] = {}
        self._running = self._copying = False
        self._believes = False  # to be in a block
        self._read_only = False  # whether this client's transactions are, unless they say otherwise

    def answer(self) -> bytes:
        """Return what there is to be sent to the client."""
        answer, self._answer = b"".join(self._answer), []
        return answer

    @property
    def alive(self) -> bool:
        """Whether another message can be answered."""
        return self._pgconn.status == pq.ConnStatus.OK and not self._connection._closed

    def start(self, startup: messages.Startup) -> bool:
        """Answer the message that begins a session; return whether it has begun."""
        encoding = startup.parameters.get("client_encoding")
        begun = self._session(lambda: self._statement(_encoding(encoding)) if encoding else None)
        asked = (
            self._answer
            if not begun
            else [part for part in self._answer if not part.startswith(b"C")]
        )
        self._answer = [
            messages.version(startup.code),
            messages.AUTHENTICATION_OK,
            messages.key(self._pgconn.backend_pid),
            *asked,
        ]
        return begun

    def query(self, text: bytes) -> None:
        """Run a query string."""
        self._session(lambda: self._query(text))

    def call(self, call: messages.Call) -> None:
        """Call a function by its oid, which is how libpq works on large objects."""
        self._session(lambda: self._call(call))

    def refuse(self, what: str) -> None:
        """Say that something is not done here."""
        self._answer.append(messages.error("0A000", what))

    def speaks_for(self, thread: int) -> None:
        """Note which thread uses the client (0: none any more):
        what the client does counts as that thread's."""
        self._connection.lock.thread = thread

    def cancel(self) -> None:
        """Cancel the statement that the client waits for, if it does. For other threads."""
        if self._running:
            self._real.cancel()

    def finish(self) -> None:
        """Roll back what the client left open, as the server does when a connection ends. May be
        called again.

        Raises SandboxLimit where that would undo what others have committed.
        """
        with contextlib.suppress(psycopg.Error):
            self._connection.close()

    def _session(self, do: Callable[[], None]) -> bool:
        """Do something with the real session, tell the client what went wrong, and that we are
        ready again.

        Returns whether nothing went wrong. While the client of a COPY is waited for, others are
        told that the session is taken: one of them may be what it waits for itself.
        """
        self._shift = 0
        done = self._attempt(do)
        while self._copying:
            kind, body = b"f", b"the client is gone"
            try:
                kind, body = self._listen()
            finally:
                done = self._attempt(lambda kind=kind, body=body: self._copy(kind, body))  # type: ignore[misc]
        return done

    def _attempt(self, do: Callable[[], None]) -> bool:
        try:
            with self._connection.lock:
                if self._connection._closed:
                    raise EOFError
                before, self._pgconn.notice_handler = self._pgconn.notice_handler, self._notice
                self._running = True
                try:
                    return self._error_response(do)
                finally:
                    self._running = False
                    self._pgconn.notice_handler = before
                    if self.alive and not self._copying:
                        self._tell_parameters()
                        self._believes = self._in_block
                        self._answer.append(messages.ready(self._connection.status))
        except SandboxLimit as error:  # of the lock
            self._answer.append(messages.error(LIMIT, error.message, error.detail, error.hint))
            status = pq.TransactionStatus.INTRANS if self._in_block else pq.TransactionStatus.IDLE
            self._answer.append(messages.ready(status))
            return False

    def _error_response(self, do: Callable[[], None]) -> bool:
        try:
            if not self._copying:
                self._prepare()
            default = self._pgconn.parameter_status(_DEFAULT)
            do()
            if self._pgconn.parameter_status(_DEFAULT) != default:
                self._read_only = default == b"off"
            return True
        except _Refused as error:
            self._answer.append(messages.error_or_notice(b"E", error.fields))
        except SandboxLimit as error:
            self._answer.append(messages.error(LIMIT, error.message, error.detail, error.hint))
        except psycopg.Error as error:
            if error.pgresult is not None:
                self._answer.append(
                    messages.error_or_notice(b"E", messages.fields_of(error.pgresult, self._shift))
                )
            elif error.sqlstate is not None:
                self._answer.append(messages.error(error.sqlstate, str(error)))
            else:
                raise
        return False

    def _tell_parameters(self) -> None:
        for name in messages.REPORTED:
            value = self._pgconn.parameter_status(name)
            if value is not None and self._known.get(name) != value:
                self._known[name] = value
                self._answer.append(messages.parameter(name, value))
        self._encoding = self._known.get(_ENCODING)

    def _notice(self, result: pq.abc.PGresult) -> None:
        self._answer.append(messages.error_or_notice(b"N", messages.fields_of(result, self._shift)))

    def _prepare(self) -> None:
        """Bring the real session to what this client believes: its encoding, and that a block is
        open which a level has undone."""
        if self._believes and not self._in_block:
            self._control("BEGIN")
        wanted, real = self._encoding, self._pgconn.transaction_status
        if (
            wanted
            and wanted != self._pgconn.parameter_status(_ENCODING)
            and real != pq.TransactionStatus.INERROR
        ):
            self._real.wait(self._connection._send([_encoding(wanted.decode())]))

    def _query(self, query: bytes) -> None:
        text = query.decode(errors="surrogateescape")
        self._connection._session.note_statement(text)
        asked = analyze(text)
        if not (pieces := asked.controls):
            self._statement(_DISCARDED if not self._in_block and asked.discards_all else query)
            return
        # Several statements in one string are one transaction, unless a BEGIN among them opens a
        # block.
        implicit, at = False, 0
        try:
            for piece, control in pieces:
                verb, self._shift = (
                    control.verb if control is not None else "",
                    text.index(piece, at),
                )
                at = self._shift + len(piece)
                if verb in ("", "modes", "constraints") and len(pieces) > 1 and not self._in_block:
                    self._control("BEGIN")
                    implicit = True
                if control is None:
                    self._statement(piece.encode(errors="surrogateescape"))
                else:
                    self._shift = 0
                    implicit = self._run_control(piece, control, implicit and self._in_block)
        except (_Refused, psycopg.Error):
            if implicit and self._in_block:
                self._control("ROLLBACK")
            raise
        if implicit and self._in_block:
            self._control("COMMIT")

    def _control(self, text: str) -> None:
        self._real.wait(self._connection._exec_command(text))

    def _run_control(self, text: str, control: Control, implicit: bool) -> bool:
        """Run what a statement that controls transactions means here; return whether an implicit
        one is still open after it."""
        connection, verb = self._connection, control.verb
        inside, tag = self._in_block, connection._tag(text, control)
        if implicit and verb == "begin":
            self._real.wait(
                connection._send(connection._translate(text, Control("modes", modes=control.modes)))
            )
        elif implicit and (
            verb not in ("commit", "rollback", "modes", "constraints") or control.chain
        ):
            raise psycopg.errors.NoActiveSqlTransaction(
                f"{analyze(text).verb} can only be used in transaction blocks"
            )
        else:
            self._control(text)
        if (
            self._read_only
            and (verb == "begin" or control.chain)
            and "READ WRITE" not in control.modes
        ):
            self._control(_READ_ONLY)
        if (implicit or not inside) and verb in ("commit", "rollback"):
            self._answer.append(messages.NO_TRANSACTION)
        self._answer.append(messages.complete(tag.encode()))
        return implicit and verb not in ("begin", "commit", "rollback")

    def _statement(self, query: bytes) -> None:
        """Run one ordinary statement, or several, behind a guard where there is no block."""
        self._guard(query.decode(errors="replace"))
        self._pgconn.send_query(query)
        for result in self._real.wait(generators.execute(self._pgconn)):
            self._relay(result)

    def _guard(self, text: str | None) -> None:
        connection = self._connection
        connection._upcoming = text
        self._real.wait(connection._start_query())
        if self._read_only and not self._in_block:
            self._real.wait(connection._send([_READ_ONLY.encode()]))

    @property
    def _in_block(self) -> bool:
        return self._connection._session.stack.in_block(self._connection._owner)

    def _relay(self, result: pq.abc.PGresult) -> None:
        status, answer = result.status, self._answer
        if status == pq.ExecStatus.TUPLES_OK:
            answer += messages.rows(result)
        elif status == pq.ExecStatus.EMPTY_QUERY:
            answer.append(messages.EMPTY_QUERY)
            return
        elif status == pq.ExecStatus.FATAL_ERROR:
            raise _Refused(messages.fields_of(result, self._shift))
        elif status == pq.ExecStatus.COPY_OUT:
            answer.append(messages.copy_response(b"H", result))
            while isinstance(
                data := self._real.wait(generators.copy_from(self._pgconn)), memoryview
            ):
                answer.append(messages.message(b"d", bytes(data)))
            answer.append(messages.COPY_DONE)
            result = data
        elif status == pq.ExecStatus.COPY_IN:
            answer.append(messages.copy_response(b"G", result))
            self._copying = True
            self._connection.lock.session_lock.pin(self._connection.lock)
            return
        answer.append(messages.complete(result.command_status or b""))

    def _copy(self, kind: bytes, body: bytes) -> None:
        """Go on with a COPY by a message of the client."""
        if kind == b"d":
            self._real.wait(generators.copy_to(self._pgconn, body, True))
        elif kind in (b"c", b"f"):
            self._copying = False
            self._connection.lock.session_lock.unpin()
            result = self._real.wait(
                generators.copy_end(self._pgconn, body.rstrip(b"\0") if kind == b"f" else None)
            )
            self._answer.append(messages.complete(result.command_status or b""))

    def _call(self, call: messages.Call) -> None:
        self._guard(None)
        if call.oid not in self._functions:
            self._pgconn.send_query(messages.FIND % call.oid)
            (found,) = self._real.wait(generators.execute(self._pgconn))
            self._functions[call.oid] = call.query(found)
        formats = [pq.Format(number) for number in call.formats]
        self._pgconn.send_query_params(
            self._functions[call.oid],
            call.arguments,
            param_formats=formats,
            result_format=pq.Format(call.result_format),
        )
        (result,) = self._real.wait(generators.execute(self._pgconn))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise _Refused(messages.fields_of(result))
        self._answer.append(messages.function_result(result.get_value(0, 0)))


def _encoding(name: str) -> bytes:
    return sql.SQL("SET client_encoding TO {}").format(name).as_bytes(None)
