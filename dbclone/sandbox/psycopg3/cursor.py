"""What goes over the wire inside a sandbox: commands of the state machine, and cursors that
translate SQL text into them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq, sql

from ...errors import SandboxLimit
from ...server.connection import Gen, exchange
from ...sql.analysis import Control, analyze
from ..savepoints import Command

if TYPE_CHECKING:
    from psycopg._cursor_base import BaseCursor

    _Base = BaseCursor[Any, Any]
else:
    _Base = object
# A command that succeeds and does nothing, where production only warns.
_NOTHING = b"SET LOCAL dbclone.nothing TO ''"


@lru_cache(maxsize=256)
def render(command: Command) -> bytes:
    """Return the SQL of one command of the state machine."""
    if not command[0]:
        return command[1].encode()
    return (
        sql.SQL("{} SAVEPOINT {}" if command[0] != "SAVEPOINT" else "{} {}")
        .format(sql.SQL(command[0]), sql.Identifier(command[1]))
        .as_bytes(None)
    )


def close_portals(connection: Any) -> Gen:
    """Close the server-side cursors that do not outlive the block which now ends; a released
    savepoint would keep them open."""
    names, connection.portals = connection.portals, set()
    if not names:
        return
    (result,) = yield from exchange(
        connection.pgconn, [b"SELECT name FROM pg_catalog.pg_cursors WHERE NOT is_holdable"]
    )
    found = names.intersection(result.get_value(row, 0) for row in range(result.ntuples))
    yield from exchange(
        connection.pgconn,
        [sql.SQL("CLOSE {}").format(sql.Identifier(n.decode())).as_bytes(None) for n in found],
    )


class _Statements(_Base):
    """What is mixed into the application's cursor class:
    SQL text that controls transactions is translated."""

    connection: Any
    _plain = False  # the statement is known not to control transactions
    _tags: dict[
        int, str
    ] = {}  # by result, of the statement that was asked for, where another was sent

    @property
    def statusmessage(self) -> str | None:
        return self._tags.get(self._iresult) or super().statusmessage

    def _start_query(self, query: Any = None) -> Gen:
        self._tags = {}
        connection = self.connection
        text = connection._upcoming = _text(query, connection)
        connection._leading = text is not None and bool(analyze(text).controls)
        self._plain = text is not None and not connection._leading
        if text is not None:
            connection._session.note_statement(text)
        try:
            yield from super()._start_query(query)
        finally:
            connection._leading, connection._upcoming = False, None

    def _maybe_prepare_gen(self, pgq: Any, *, prepare: bool | None = None, **options: Any) -> Gen:
        pieces = () if self._plain else analyze(pgq.query.decode(errors="replace")).controls
        if not pieces:
            yield from super()._maybe_prepare_gen(pgq, prepare=prepare, **options)
            return
        connection = self.connection
        if connection._pipeline:
            raise SandboxLimit(
                "transaction control as SQL text inside a pipeline",
                f"The statement is: {pgq.query.decode(errors='replace')[:100]}",
                "Use connection.transaction(), or isolate this test with reset='truncate'.",
            )
        self._query = pgq
        results: list[Any] = []
        tags = {}
        # Several statements in one string are one transaction, unless a BEGIN among them opens a
        # block.
        implicit = False
        try:
            for number, (text, control) in enumerate(pieces):
                verb = control.verb if control is not None else ""
                if verb in ("", "modes", "constraints") and len(pieces) > 1 and not self._inside:
                    yield from exchange(
                        connection.pgconn, connection._translate("BEGIN", Control("begin"))
                    )
                    implicit = True
                if control is None:
                    yield from connection._before_statement(text)
                    connection.portals.update(analyze(text).declares)
                    sent = [text.encode()]
                else:
                    tag = connection._tag(text, control)
                    yield from connection._check(control)
                    sent, implicit = self._run_control(text, control, implicit)
                    tags[number] = tag
                results.append((yield from exchange(connection.pgconn, sent))[-1])
        except psycopg.Error:
            if implicit and self._inside:
                yield from exchange(
                    connection.pgconn, connection._translate("ROLLBACK", Control("rollback"))
                )
            raise
        if implicit and self._inside:
            yield from connection._check(Control("commit"))
            yield from exchange(
                connection.pgconn, connection._translate("COMMIT", Control("commit"))
            )
        self._set_results(results)
        self._tags = tags
        if "ROLLBACK" in tags.values():
            connection._prepared.clear()  # as psycopg does when it sees the tag

    @property
    def _inside(self) -> bool:
        return bool(self.connection._session.stack.in_block(self.connection._owner))

    def _run_control(self, text: str, control: Control, implicit: bool) -> tuple[list[bytes], bool]:
        """Return what is sent for a statement that controls transactions, and whether an implicit
        one is still open after it."""
        connection = self.connection
        if implicit and self._inside:
            if control.verb == "begin":
                return connection._translate(text, Control("modes", modes=control.modes)) or [
                    _NOTHING
                ], False
            if control.verb not in ("commit", "rollback", "modes", "constraints") or control.chain:
                raise psycopg.errors.NoActiveSqlTransaction(
                    f"{analyze(text).verb} can only be used in transaction blocks"
                )
        sent = connection._translate(text, control) or [_NOTHING]
        return sent, implicit and control.verb not in ("begin", "commit", "rollback")


class _Portal(_Statements):
    """The same for server-side cursors, which outside a block are gone, as in production."""

    name: str
    withhold: bool

    def _declare_gen(self, query: Any, *arguments: Any) -> Gen:
        yield from super()._declare_gen(query, *arguments)  # type: ignore[misc]
        if not self.withhold:
            self.connection.portals.add(self.name.encode())

    def _close_gen(self) -> Gen:
        status = self.connection.status
        if status == pq.TransactionStatus.INTRANS or (
            status == pq.TransactionStatus.IDLE and self.withhold
        ):
            # psycopg looks at the real status, which a failure may have left
            yield from self.connection._before_statement("CLOSE")
            yield from super()._close_gen()  # type: ignore[misc]


def _text(query: Any, connection: Any) -> str | None:
    """Return a query as text, None if it has to be put together from values first."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query.as_string(connection) if isinstance(query, sql.Composable) else None


@lru_cache(maxsize=64)
def sandboxed_class(factory: Any) -> type[Any]:
    """Return the application's cursor class with ours mixed in."""
    if issubclass(factory, _Statements):
        return factory  # type: ignore[no-any-return]
    mixin = _Portal if hasattr(factory, "_declare_gen") else _Statements
    return type(factory.__name__, (mixin, factory), {"__module__": factory.__module__})
