"""What goes over the wire inside a sandbox: commands of the state machine, and cursors that translate SQL text into them."""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import generators, pq, sql

from ..errors import SandboxLimit
from ..statements import controls
from .reads import only_reads
from .savepoints import Command

Gen = Generator[Any, Any, Any]
_NOTHING = b"SET LOCAL dbclone.nothing TO ''"  # a command that succeeds and does nothing, where production only warns
_OUTER = ("begin", "commit", "rollback", "two_phase")
_TAGS = {
    "begin": b"BEGIN",
    "commit": b"COMMIT",
    "rollback": b"ROLLBACK",
    "rollback_to": b"ROLLBACK",
    "savepoint": b"SAVEPOINT",
    "release": b"RELEASE",
}


@lru_cache(maxsize=256)
def render(command: Command) -> bytes:
    """Return the SQL of one command of the state machine."""
    return (
        sql.SQL("{} SAVEPOINT {}" if command[0] != "SAVEPOINT" else "{} {}")
        .format(sql.SQL(command[0]), sql.Identifier(command[1]))
        .as_bytes(None)
    )


def exchange(pgconn: pq.abc.PGconn, commands: list[bytes]) -> Gen:
    """Send commands in one message, wait for all results, and raise the first error; nothing for no commands."""
    if not commands:
        return []
    if pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError("the connection is closed")
    pgconn.send_query(b"; ".join(commands))
    results = yield from generators.execute(pgconn)
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
    return results


class _Cursor(psycopg.Cursor[Any]):
    """What is mixed into the application's cursor class: SQL text that controls transactions is translated."""

    _conn: Any
    _tag = b""  # of the statement that was asked for, where another was sent

    @property
    def statusmessage(self) -> str | None:
        return self._tag.decode() if self._tag else super().statusmessage

    def _start_query(self, query: Any = None) -> Gen:
        self._tag = b""
        text = query if isinstance(query, str) else query.decode(errors="replace") if isinstance(query, bytes) else ""
        pieces = controls(text) if text else ()
        first = pieces[0][1] if pieces else None
        # A savepoint begins a block where autocommit is off, as any other statement does.
        self._conn._leading = first is not None and (first.verb in _OUTER or self._conn._autocommit)
        self._conn._reading = bool(text) and not pieces and only_reads(text)
        try:
            yield from super()._start_query(query)
        finally:
            self._conn._leading = self._conn._reading = False

    def _maybe_prepare_gen(self, pgq: Any, *, prepare: bool | None = None, **options: Any) -> Gen:
        pieces = controls(pgq.query.decode(errors="replace"))
        if not pieces:
            yield from super()._maybe_prepare_gen(pgq, prepare=prepare, **options)
            return
        connection = self._conn
        if connection._pipeline:
            raise SandboxLimit(
                "transaction control as SQL text inside a pipeline",
                f"The statement is: {pgq.query.decode(errors='replace')[:100]}",
                "Use connection.transaction(), or isolate this test with reset='truncate'.",
            )
        self._query = pgq
        results = []
        tag = b""
        for number, (text, control) in enumerate(pieces):
            if control is None:
                if number:
                    yield from connection._before_statement()
                sent, tag = [text.encode()], b""
            else:
                sent, tag = connection._translate(text, control), _TAGS[control.verb]
                if not sent:
                    connection._session.stack.settled(connection._owner, connection._session.failed)
                    sent = [_NOTHING]
            results.append((yield from exchange(self._pgconn, sent))[-1])
        self._set_results(results[-1:] if len(pieces) == 1 else results)
        self._tag = tag if len(pieces) == 1 else b""


@lru_cache(maxsize=64)
def sandboxed(factory: Any) -> type[Any]:
    """Return the application's cursor class with ours mixed in."""
    return (
        factory if issubclass(factory, _Cursor) else type(factory.__name__, (_Cursor, factory), {"__module__": factory.__module__})
    )


class ServerCursor(psycopg.ServerCursor[Any]):
    """A server-side cursor that is refused where production refuses it: outside a transaction block."""

    _conn: Any

    def _declare_gen(self, *arguments: Any, **options: Any) -> Gen:
        connection = self._conn
        if connection._autocommit and not (self.withhold or connection._session.stack.in_block(connection._owner)):
            raise psycopg.errors.NoActiveSqlTransaction("DECLARE CURSOR can only be used in transaction blocks")
        yield from super()._declare_gen(*arguments, **options)
