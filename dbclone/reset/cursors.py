"""What goes over the wire inside a sandbox: commands of the state machine, and cursors that translate SQL text into them."""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, pq, sql

from ..errors import SandboxLimit
from ..statements import controls
from .savepoints import Command

if TYPE_CHECKING:
    from psycopg._cursor_base import BaseCursor

    _Base = BaseCursor[Any, Any]
else:
    _Base = object

Gen = Generator[Any, Any, Any]
_NOTHING = b"SET LOCAL dbclone.nothing TO ''"  # a command that succeeds and does nothing, where production only warns
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


def close_portals(connection: Any) -> Gen:
    """Close the server-side cursors that do not outlive the block which now ends; a released savepoint would keep them open."""
    names, connection.portals = connection.portals, set()
    if not names:
        return
    (result,) = yield from exchange(connection.pgconn, [b"SELECT name FROM pg_catalog.pg_cursors WHERE NOT is_holdable"])
    found = names.intersection(result.get_value(row, 0) for row in range(result.ntuples))
    yield from exchange(connection.pgconn, [sql.SQL("CLOSE {}").format(sql.Identifier(n.decode())).as_bytes(None) for n in found])


class _Statements(_Base):
    """What is mixed into the application's cursor class: SQL text that controls transactions is translated."""

    _conn: Any
    _tag = b""  # of the statement that was asked for, where another was sent

    @property
    def statusmessage(self) -> str | None:
        return self._tag.decode() if self._tag else super().statusmessage

    def _start_query(self, query: Any = None) -> Gen:
        self._tag = b""
        text = query if isinstance(query, str) else query.decode(errors="replace") if isinstance(query, bytes) else ""
        self._conn._leading = bool(text) and bool(controls(text)) and controls(text)[0][1] is not None
        self._conn._query = query
        try:
            yield from super()._start_query(query)
        finally:
            self._conn._leading, self._conn._query = False, None

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
                connection._note(text)
                sent, tag = [text.encode()], b""
            else:
                if control.verb in ("commit", "rollback"):
                    yield from connection._close_portals()
                sent, tag = connection._translate(text, control) or [_NOTHING], _TAGS[control.verb]
            results.append((yield from exchange(self._pgconn, sent))[-1])
        self._set_results(results[-1:] if len(pieces) == 1 else results)
        self._tag = tag if len(pieces) == 1 else b""


class _Portal(_Statements):
    """The same for server-side cursors, which outside a block are gone, or refused, as in production."""

    _name: str
    _withhold: bool

    def _declare_gen(self, query: Any, *arguments: Any) -> Gen:
        connection = self._conn
        if connection._autocommit and not self._withhold and connection.status == pq.TransactionStatus.IDLE:
            raise psycopg.errors.NoActiveSqlTransaction("DECLARE CURSOR can only be used in transaction blocks")
        yield from super()._declare_gen(query, *arguments)  # type: ignore[misc]
        if not self._withhold:
            connection.portals.add(self._name.encode())

    def _close_gen(self) -> Gen:
        status = self._conn.status
        if status == pq.TransactionStatus.INTRANS or (status == pq.TransactionStatus.IDLE and self._withhold):
            yield from super()._close_gen()  # type: ignore[misc]


@lru_cache(maxsize=64)
def sandboxed(factory: Any) -> type[Any]:
    """Return the application's cursor class with ours mixed in."""
    if issubclass(factory, _Statements):
        return factory  # type: ignore[no-any-return]
    mixin = _Portal if hasattr(factory, "_declare_gen") else _Statements
    return type(factory.__name__, (mixin, factory), {"__module__": factory.__module__})
