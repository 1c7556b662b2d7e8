"""What a sandbox answers to messages of PostgreSQL's wire protocol: query strings and function calls, run on a SandboxConnection.

The connection does for a client's query strings what it does for an application's own: the state machine, and the lock around each
message to the one real session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, pq, sql

from ..errors import SandboxLimit
from ..statements import Control, controls
from . import outside, wire

if TYPE_CHECKING:
    from .sandbox import SandboxConnection

LIMIT = "DBC01"  # the SQLSTATE under which a SandboxLimit travels
_ENCODING, _DEFAULT_READ_ONLY = b"client_encoding", b"default_transaction_read_only"
_READ_ONLY = b"SET TRANSACTION READ ONLY"
_ACTIVE, _INERROR = pq.TransactionStatus.ACTIVE, pq.TransactionStatus.INERROR


class _Refused(Exception):
    """An error that the client is told, by its fields; what follows in the same query string is not run."""

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self.fields = fields


class Backend:
    """One client's session as it sees it.

    Arguments: `connection`, a sandboxed connection in autocommit mode that nobody else uses: the client's commands say when
    transactions begin; `listen`, sends the client what has been answered so far and returns its next message, during a COPY;
    `encoding`, which the client begins with if it does not say another.
    """

    def __init__(self, connection: SandboxConnection, listen: Callable[[], tuple[bytes, bytes]], encoding: bytes | None) -> None:
        self._connection = connection
        self._listen = listen
        self._real: psycopg.Connection[Any] = connection._session.real
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

    def start(self, startup: wire.Startup) -> bool:
        """Answer the message that begins a session; return whether it has begun."""
        encoding = startup.parameters.get("client_encoding")
        begun = self._session(lambda: self._statement(_encoding(encoding)) if encoding else None)
        asked = self._answer if not begun else [part for part in self._answer if not part.startswith(b"C")]
        self._answer = [wire.version(startup.code), wire.AUTHENTICATION_OK, wire.key(self._pgconn.backend_pid), *asked]
        return begun

    def query(self, text: bytes) -> None:
        """Run a query string."""
        self._session(lambda: self._query(text))

    def call(self, call: wire.Call) -> None:
        """Call a function by its oid, which is how libpq works on large objects."""
        self._session(lambda: self._call(call))

    def refuse(self, what: str) -> None:
        """Say that something is not done here."""
        self._answer.append(wire.error("0A000", what))

    def cancel(self) -> None:
        """Cancel the statement that the client waits for, if it does. For other threads."""
        if self._running:
            self._real.cancel()

    def works_for(self, thread: int) -> None:
        """Say which thread of the application uses the connection now."""
        self._connection.lock.home = thread

    def finish(self) -> None:
        """Roll back what the client left open, as the server does when a connection ends. May be called again.

        Raises SandboxLimit where that would undo what others have committed.
        """
        with contextlib.suppress(psycopg.Error):
            self._connection.close()

    def _session(self, do: Callable[[], None]) -> bool:
        """Do something with the real session, tell the client what went wrong, and that we are ready again.

        Returns whether nothing went wrong. The client of a COPY is waited for without the lock: it may be asking something else of
        the sandbox in order to go on, and must get an answer.
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
                    return self._told(do)
                finally:
                    self._running = False
                    self._pgconn.notice_handler = before
                    if self.alive and not self._copying:
                        self._tell_parameters()
                        self._believes = self._in_block
                        self._answer.append(wire.ready(self._connection.status))
        except SandboxLimit as error:  # of the lock
            self._answer.append(wire.error(LIMIT, error.message, error.detail, error.hint))
            status = pq.TransactionStatus.INTRANS if self._in_block else pq.TransactionStatus.IDLE
            self._answer.append(wire.ready(status))
            return False

    def _told(self, do: Callable[[], None]) -> bool:
        try:
            if not self._copying:
                self._prepare()
                if self._believes and not self._in_block:  # the end of a level has undone what was open in it
                    self._real.wait(self._connection._exec_command("BEGIN"))
            default = self._pgconn.parameter_status(_DEFAULT_READ_ONLY)
            do()
            if self._pgconn.parameter_status(_DEFAULT_READ_ONLY) != default:
                self._read_only = default == b"off"
            return True
        except _Refused as error:
            self._answer.append(wire.told(b"E", error.fields))
        except SandboxLimit as error:
            self._answer.append(wire.error(LIMIT, error.message, error.detail, error.hint))
        except psycopg.Error as error:
            if error.pgresult is not None:
                self._answer.append(wire.told(b"E", wire.fields_of(error.pgresult, self._shift)))
            elif error.sqlstate is not None:
                self._answer.append(wire.error(error.sqlstate, str(error)))
            else:
                raise
        return False

    def _tell_parameters(self) -> None:
        for name in wire.REPORTED:
            value = self._pgconn.parameter_status(name)
            if value is not None and self._known.get(name) != value:
                self._known[name] = value
                self._answer.append(wire.parameter(name, value))
        self._encoding = self._known.get(_ENCODING)

    def _notice(self, result: pq.abc.PGresult) -> None:
        self._answer.append(wire.told(b"N", wire.fields_of(result, self._shift)))

    def _prepare(self) -> None:
        """See that the real session is free, and set to the encoding that this client believes in."""
        status = self._pgconn.transaction_status
        if status == _ACTIVE:
            raise SandboxLimit(
                "a COPY or a stream of another connection is still running in the sandbox",
                "All connections of a sandbox share one session, which does one thing at a time.",
                'Finish it first, or isolate this test with @pytest.mark.dbclone(reset="truncate").',
            )
        wanted = self._encoding
        if wanted and wanted != self._pgconn.parameter_status(_ENCODING) and status != _INERROR:
            self._real.wait(self._connection._send([_encoding(wanted.decode())]))

    def _query(self, query: bytes) -> None:
        text = query.decode(errors="surrogateescape")
        pieces = controls(text)
        if not pieces:
            self._statement(query if self._in_block else self._outside(text))
            return
        at = 0
        for piece, control in pieces:
            at = text.index(piece, at)
            if control is None:
                self._shift = at
                self._statement(piece.encode(errors="surrogateescape"))
            else:
                self._shift = 0
                self._control(piece, control)
            at += len(piece)

    def _outside(self, text: str) -> bytes:
        """Return what to run for a query string outside any block."""
        if words := outside.refused(text):
            raise psycopg.errors.NoActiveSqlTransaction(words)
        return outside.instead(text).encode(errors="surrogateescape")

    def _control(self, text: str, control: Control) -> None:
        """Run what a statement that controls transactions means here."""
        inside, tag = self._in_block, self._connection._tag(text, control)
        self._real.wait(self._connection._exec_command(text))
        if self._read_only and (control.verb == "begin" or control.chain) and "READ WRITE" not in control.modes:
            self._real.wait(self._connection._send([_READ_ONLY]))
        if not inside and control.verb in ("commit", "rollback"):
            self._answer.append(wire.NO_TRANSACTION)
        self._answer.append(wire.complete(tag.encode()))

    def _statement(self, query: bytes) -> None:
        """Run one ordinary statement, or several, behind a guard where there is no block."""
        self._guard(query.decode(errors="replace"))
        self._pgconn.send_query(query)
        for result in self._real.wait(generators.execute(self._pgconn)):
            self._relay(result)

    def _guard(self, text: str | None = None) -> None:
        self._connection._upcoming = text
        try:
            self._real.wait(self._connection._start_query())
        finally:
            self._connection._upcoming = None
        if self._read_only and not self._in_block:
            self._real.wait(self._connection._send([_READ_ONLY]))

    @property
    def _in_block(self) -> bool:
        return self._connection._session.stack.in_block(self._connection._owner)

    def _relay(self, result: pq.abc.PGresult) -> None:
        status, answer = result.status, self._answer
        if status == pq.ExecStatus.TUPLES_OK:
            answer += wire.rows(result)
        elif status == pq.ExecStatus.EMPTY_QUERY:
            answer.append(wire.EMPTY_QUERY)
            return
        elif status == pq.ExecStatus.FATAL_ERROR:
            raise _Refused(wire.fields_of(result, self._shift))
        elif status == pq.ExecStatus.COPY_OUT:
            answer.append(wire.copy_response(b"H", result))
            while isinstance(data := self._real.wait(generators.copy_from(self._pgconn)), memoryview):
                answer.append(wire.message(b"d", bytes(data)))
            answer.append(wire.COPY_DONE)
            result = data
        elif status == pq.ExecStatus.COPY_IN:
            answer.append(wire.copy_response(b"G", result))
            self._copying = True
            return
        answer.append(wire.complete(result.command_status or b""))

    def _copy(self, kind: bytes, body: bytes) -> None:
        """Go on with a COPY by a message of the client."""
        if kind == b"d":
            self._real.wait(generators.copy_to(self._pgconn, body, True))
        elif kind in (b"c", b"f"):
            self._copying = False
            result = self._real.wait(generators.copy_end(self._pgconn, body.rstrip(b"\0") if kind == b"f" else None))
            self._answer.append(wire.complete(result.command_status or b""))

    def _call(self, call: wire.Call) -> None:
        self._guard()
        if call.oid not in self._functions:
            find = sql.SQL(
                "SELECT nspname, proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
                " WHERE p.oid = {}"
            ).format(call.oid)
            self._pgconn.send_query(find.as_bytes(None))
            (found,) = self._real.wait(generators.execute(self._pgconn))
            names = [(found.get_value(0, column) or b"").decode() for column in (0, 1)]
            places = sql.SQL(", ").join(sql.SQL(f"${number}") for number in range(1, len(call.arguments) + 1))
            self._functions[call.oid] = sql.SQL("SELECT {}({})").format(sql.Identifier(*names), places).as_bytes(None)
        formats = [pq.Format(number) for number in call.formats]
        self._pgconn.send_query_params(
            self._functions[call.oid], call.arguments, param_formats=formats, result_format=pq.Format(call.result_format)
        )
        (result,) = self._real.wait(generators.execute(self._pgconn))
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise _Refused(wire.fields_of(result))
        self._answer.append(wire.function_result(result.get_value(0, 0)))


def _encoding(name: str) -> bytes:
    return sql.SQL("SET client_encoding TO {}").format(name).as_bytes(None)
