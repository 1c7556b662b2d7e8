"""One real connection inside one outer transaction, and the psycopg connections that an application
sees of it.

Here is only who waits: a thread or an asyncio task. What goes over the wire is decided in
`psycopg3.connection` and `psycopg3.cursor`. Closing a connection rolls its open block back, as the
server would, and keeps the session.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.abc import AdaptContext
from psycopg.adapt import AdaptersMap
from psycopg.rows import tuple_row

from ..sql.analysis import WRITERS, analyze
from .psycopg3.connection import PipelineMixin, Sandboxed, TransactionMixin
from .psycopg3.prepared import Prepared
from .savepoints import CHECK, Savepoints
from .session_lock import ConnectionLock, ExclusiveUse, SessionLock, TransferableWait

# Statements to leave in the session, so that not every test that changes objects pays for
# discarding them.
_STALE = 100
_DEFERRABLE = """SELECT n.nspname::text, c.conname::text, c.condeferred
    FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
    WHERE c.condeferrable"""


class Session:
    """The real connection that the sandboxed ones share, with the stack of savepoints inside its
    transaction.

    Arguments: `real`, a psycopg connection in autocommit mode that nobody else uses; `lock_timeout`
    in seconds, how long one of the sandboxed connections waits until another has finished a
    statement.
    """

    def __init__(self, real: psycopg.Connection[Any], lock_timeout: float = 5.0) -> None:
        self.real = real
        self.pgconn = real.pgconn
        self.stack = _stack(real)
        self.session_lock = SessionLock(real.pgconn, lock_timeout)
        self.lock = ConnectionLock(self.session_lock)
        self.real.lock = self.lock  # type: ignore[assignment]
        self.limited = ""  # what was refused that a stronger reset allows
        self._alters = False  # the application changed objects that prepared statements may use
        self._prepares = (
            False  # the application prepared statements by SQL, which no rollback undoes
        )
        self._stale = 0  # statements that the server has prepared, and nobody here remembers
        self._left: list[Prepared] = []  # what closed connections have prepared, for later ones
        self._own = real._prepared = Prepared(0)
        self.audits = 0  # how often the statements of the reset had to be prepared
        self.speaker = 0  # whose handlers hear the server's notices
        self.gone = pq.PGconn.connect_start(b"port=-1")  # fails without touching the network
        self.gone.finish()
        self._owners, self._numbers = itertools.count(1), itertools.count(1)
        self._classes: dict[type[Any], type[Any]] = {}
        self._connections: weakref.WeakValueDictionary[int, Sandboxed] = (
            weakref.WeakValueDictionary()
        )

    @property
    def failed(self) -> bool:
        """Whether the real transaction is aborted."""
        return self.pgconn.transaction_status == pq.TransactionStatus.INERROR

    def number(self) -> int:
        """Return the number of a new connection, by which the savepoints know it."""
        number = self.speaker = next(self._owners)
        return number

    def join(self, number: int, connection: Sandboxed) -> None:
        """Know a connection, now that it is complete: from here on the end of the test may close
        it, whichever thread made it."""
        self._connections[number] = connection

    def connection_class(self, base: type[Any] = psycopg.Connection) -> type[Any]:
        """Return a class like `base` (a Connection or AsyncConnection, or a subclass) whose
        `connect` leads into the sandbox."""
        if base not in self._classes:
            shell = (
                AsyncSandboxConnection
                if issubclass(base, psycopg.AsyncConnection)
                else SandboxConnection
            )
            bases = (shell,) if issubclass(shell, base) else (shell, base)
            self._classes[base] = type(
                shell.__name__, bases, {"_session": self, "__module__": shell.__module__}
            )
        return self._classes[base]

    def connect(
        self,
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: Any = None,
        cursor_factory: Any = None,
        **_: Any,
    ) -> SandboxConnection:
        """Return a new connection of the application into the sandbox. Arguments are those of
        `psycopg.connect`; those about where to connect do nothing, and looking at them, as
        psycopg's would, costs as much as a round trip."""
        connection: SandboxConnection = self.connection_class()(self.pgconn)
        connection._autocommit = bool(autocommit)
        if row_factory:
            connection.row_factory = row_factory
        if cursor_factory:
            connection.cursor_factory = cursor_factory
        if context:
            connection._adapters = AdaptersMap(context.adapters)
        connection.prepare_threshold = prepare_threshold
        return connection

    async def aconnect(self, **options: Any) -> AsyncSandboxConnection:
        """As `connect`, for asyncio."""
        connection: AsyncSandboxConnection = await self.connection_class(
            psycopg.AsyncConnection
        ).connect("", **options)
        return connection

    def disconnect(self) -> None:
        """Close what the application left open: a connection kept for later must fail rather than
        write outside any sandbox."""
        for reference in self._connections.valuerefs():
            connection = reference()
            if connection is not None:
                connection.shut()
        self._connections.clear()
        if (
            self._prepares or self._stale > _STALE
        ) and self.real.info.transaction_status == pq.TransactionStatus.IDLE:
            self._forget()
            self._prepares, self._stale = False, 0
            self.real.execute("DEALLOCATE ALL")

    def note_statement(self, text: str) -> None:
        """Note of a statement that begins whether it may change objects, or what is prepared."""
        asked = analyze(text)
        if not asked.alters:
            return
        self._alters, self._prepares = True, self._prepares or asked.prepares
        if asked.deallocates:
            self._forget()
        self._stale += sum(prepared.forget_inherited() for prepared in self._managers())

    def _managers(self) -> list[Prepared]:
        """Return what is known of prepared statements: by closed connections, open ones,
        and our own."""
        open_ones = [connection._prepared for connection in list(self._connections.values())]
        return [*self._left, *open_ones, self._own]

    def _forget(self) -> None:
        self._stale += sum(prepared.forget() for prepared in self._managers())

    def forget_undone(self) -> None:
        """Forget what psycopg prepared, if the objects that it uses may be others now that a test
        has been rolled back."""
        if self._alters:
            self._alters = False
            self._forget()

    def refused(self) -> str:
        """Return what was refused, since this was last asked, that a stronger reset allows; empty
        if nothing was."""
        found = self.limited or self.session_lock.limited
        self.limited = self.session_lock.limited = ""
        return found

    def prepared(self) -> Prepared:
        """Return what a new connection knows of prepared statements: what one that is closed has
        left, if there is any."""
        try:
            return self._left.pop().inherit()
        except IndexError:
            return Prepared(next(self._numbers))

    def keep_prepared(self, prepared: Prepared) -> None:
        """Keep what a connection had prepared when it was closed."""
        self._stale += len(prepared.unproven)
        self._left.append(prepared)


def _stack(real: psycopg.Connection[Any]) -> Savepoints:
    """Return an empty stack that knows what it has to know of the schema."""
    with real.cursor(row_factory=tuple_row) as cursor:
        writers = frozenset(name for (name,) in cursor.execute(WRITERS.encode()).fetchall())
        constraints = cursor.execute(_DEFERRABLE.encode()).fetchall()
    names = sorted({(schema, name) for schema, name, deferred in constraints if deferred})
    listed = sql.SQL(", ").join(sql.Identifier(*each) for each in names)
    deferred = (
        (sql.SQL("SET CONSTRAINTS {} DEFERRED").format(listed) if names else sql.SQL(CHECK))
        if constraints
        else sql.SQL("")
    )
    return Savepoints(writers=writers, deferred=deferred.as_string(real))


class SandboxConnection(Sandboxed, psycopg.Connection[Any]):
    """A connection as the application sees it; several share one real session."""

    @classmethod
    def _get_connection_params(cls, conninfo: str, **_: Any) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Close for the application: an open block is rolled back, the session stays."""
        pool = getattr(self, "_pool", None)
        if self.closed or self._is_forked():
            return
        if pool and getattr(pool, "close_returns", False):
            pool.putconn(self)
            return
        try:
            with contextlib.suppress(psycopg.Error), self.lock:
                self.wait(self._closing())
        finally:
            self.shut()

    @contextlib.contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """As psycopg's: a block, or a savepoint inside one."""
        block = _Transaction(self, savepoint_name, force_rollback)
        if self._pipeline:
            with self.pipeline(), block, self.pipeline():
                yield block
        else:
            with block:
                yield block

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """As psycopg's; meanwhile the session is this connection's."""
        self._prepared.piped = True
        if self._pipeline is None:
            self._pipeline = _Pipeline(self)
        with ExclusiveUse(self.lock), super().pipeline() as pipeline:
            yield pipeline


class AsyncSandboxConnection(Sandboxed, psycopg.AsyncConnection[Any]):
    """The same for asyncio."""

    @classmethod
    async def _get_connection_params(cls, conninfo: str, **_: Any) -> dict[str, Any]:
        return {}

    async def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's; a thread that needs the session meanwhile, and keeps this event loop from
        running, may finish `gen`."""
        statement = TransferableWait(gen)
        if not self._session.session_lock.running(self.lock, statement):
            # A thread took the turn in the middle of psycopg's own `async with`
            async with self.lock:
                return await super().wait(gen, *arguments, **options)
        try:
            return await super().wait(statement, *arguments, **options)  # type: ignore[arg-type]
        finally:
            self._session.session_lock.running(self.lock, None)

    async def close(self) -> None:
        """Close for the application: an open block is rolled back, the session stays."""
        pool = getattr(self, "_pool", None)
        if self.closed or self._is_forked():
            return
        if pool and getattr(pool, "close_returns", False):
            await pool.putconn(self)
            return
        try:
            with contextlib.suppress(psycopg.Error):
                async with self.lock:
                    await self.wait(self._closing())
        finally:
            self.shut()

    @contextlib.asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """As psycopg's: a block, or a savepoint inside one."""
        block = _AsyncTransaction(self, savepoint_name, force_rollback)
        if self._pipeline:
            async with self.pipeline(), block, self.pipeline():
                yield block
        else:
            async with block:
                yield block

    @contextlib.asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """As psycopg's; meanwhile the session is this connection's."""
        self._prepared.piped = True
        if self._pipeline is None:
            self._pipeline = _AsyncPipeline(self)
        async with ExclusiveUse(self.lock), super().pipeline() as pipeline:
            yield pipeline


class _Transaction(TransactionMixin, psycopg.Transaction):
    pass


class _AsyncTransaction(TransactionMixin, psycopg.AsyncTransaction):
    pass


class _Pipeline(PipelineMixin, psycopg.Pipeline):
    pass


class _AsyncPipeline(PipelineMixin, psycopg.AsyncPipeline):
    pass
