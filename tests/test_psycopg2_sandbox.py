"""psycopg2 in a sandbox: the same code gives the same results, rows and errors there and for real."""

from __future__ import annotations

import gc
import io
import pickle
import select
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from dbclone.errors import SandboxLimit
from dbclone.reset.rollback import Rollback
from dbclone.reset.sandbox import Session
from dbclone.server import Server

psycopg2 = pytest.importorskip("psycopg2")
gates = pytest.importorskip("dbclone.reset.psycopg2_sandbox")

from psycopg2 import extensions, extras, pool  # noqa: E402

from .psycopg2_data import DATA  # noqa: E402
from .psycopg2_programs import SCHEMA, TRANSACTIONS, Connect, Told, rows  # noqa: E402


def _database(server: Server) -> str:
    name = f"psycopg2_{uuid.uuid4().hex[:8]}"
    server.connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    found = server.database(name).url
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute(SCHEMA)
    return found


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return _database(server)


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A sandbox in which one level is open; afterwards the table must be empty for everybody."""
    with psycopg.connect(url, autocommit=True) as real:
        found = Session(real)
        level = Rollback(found)
        level.before()
        yield found
        if not real.closed:
            assert level.after().spoiled == ""
        with psycopg.connect(url) as outside:
            assert outside.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.fixture
def connect(session: Session, url: str) -> Iterator[Connect]:
    """Open psycopg2 connections into the sandbox."""
    with gates.Gate(session) as gate:
        yield lambda **options: gate.connect(url, **options)
    assert not [thread for thread in threading.enumerate() if thread.name == "dbclone sandbox"]


def insert(connection: Any, value: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (%s)", (value,))


def count(session: Session) -> int:
    """Count the rows as the test's own psycopg 3 connection sees them."""
    with session.connect(autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM t").fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("program", [*TRANSACTIONS, *DATA], ids=lambda program: str(program.__name__))
def test_a_program_sees_the_same_sandboxed_and_for_real(
    program: Callable[[Connect, Told], None], connect: Connect, server: Server
) -> None:
    """On a fresh database, in autocommit mode or not; texts and positions of errors included."""
    fresh = _database(server)
    opened: list[Any] = []

    def really(**options: Any) -> Any:
        made = psycopg2.connect(fresh, **options)
        if program.__name__ != "forgotten":
            opened.append(made)
        return made

    real, sandboxed = Told(), Told()
    program(really, real)
    for connection in opened:
        connection.close()
    program(connect, sandboxed)
    assert len(real.seen) > 5
    for there, here in zip(real.seen, sandboxed.seen, strict=True):
        assert here == there


def test_psycopg_and_psycopg2_see_the_same_state(connect: Connect, session: Session) -> None:
    connection = connect()
    insert(connection, 1)
    assert count(session) == 1  # one session: what is not committed yet shows too
    connection.rollback()
    assert count(session) == 0
    with session.connect(autocommit=True) as other:
        other.execute("INSERT INTO t VALUES (2)")
    cursor = connection.cursor()
    cursor.execute("SELECT a FROM t")
    assert rows(cursor) == [(2,)]


def test_a_limit_of_the_sandbox_is_no_error_of_psycopg2(connect: Connect) -> None:
    """What it says arrives in its three parts; an application's own error handling must not swallow it."""
    connection = connect()
    connection.tpc_begin(connection.xid(1, "a", "b"))
    insert(connection, 1)
    with pytest.raises(SandboxLimit, match="two-phase commit") as raised:
        connection.tpc_prepare()
    assert not isinstance(raised.value, psycopg2.Error)
    assert raised.value.message == "two-phase commit inside a rollback"
    assert raised.value.detail.startswith("The statement is: PREPARE TRANSACTION")
    assert 'reset="truncate"' in raised.value.hint
    assert type(pickle.loads(pickle.dumps(raised.value))) is SandboxLimit
    connection.close()
    connection = connect()
    with connection.cursor() as cursor, pytest.raises(SandboxLimit, match="reserved"):
        cursor.execute("SAVEPOINT dbclone_mine")


def test_transactions_that_interleave_are_refused(connect: Connect) -> None:
    first, second = connect(), connect()
    insert(first, 1)
    insert(second, 2)
    with pytest.raises(SandboxLimit, match="interleave"):
        first.commit()
    second.commit()
    first.commit()


def test_another_thread_sees_what_the_test_wrote(connect: Connect) -> None:
    """D8."""
    connection = connect()
    connection.autocommit = True
    insert(connection, 1)
    seen: list[Any] = []

    def look() -> None:
        for _ in range(20):
            other = connect()
            other.autocommit = True
            cursor = other.cursor()
            cursor.execute("SELECT count(*) FROM t")
            seen.append(cursor.fetchone())
            other.close()

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [(1,)] * 80


def test_a_copy_whose_data_come_from_the_sandbox_is_an_error_and_no_deadlock(connect: Connect, session: Session) -> None:
    """For real it would work; here one session would have to do two things at once."""
    connection, other = connect(), connect()
    other.autocommit = True

    class Asking:
        def __init__(self, ask: Callable[[], Any]) -> None:
            self.ask = ask

        def read(self, size: int) -> str:
            self.ask()
            return ""

    cursor = connection.cursor()
    for ask, expected in (
        (lambda: other.cursor().execute("SELECT 1"), "a COPY or a stream"),
        (lambda: count(session), "another command"),
    ):
        with pytest.raises(psycopg2.Error, match=expected):  # psycopg2 lets the server end the COPY with the error's text
            cursor.copy_from(Asking(ask), "t")
        connection.rollback()
    assert count(session) == 0


def test_a_copy_much_larger_than_any_buffer_ends(connect: Connect, session: Session) -> None:
    connection = connect()
    with connection.cursor() as cursor:
        for size in (1 << 10, 8192, 1 << 24):
            cursor.copy_from(io.StringIO("".join(f"{n}\t{'ü' * 500}\n" for n in range(3000))), "t", size=size)
            assert cursor.rowcount == 3000
            connection.rollback()


def test_a_running_statement_can_be_cancelled(connect: Connect) -> None:
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    assert pid == connection.get_backend_pid()
    stop = threading.Event()

    def cancel() -> None:
        while not stop.wait(0.01):  # until it hits: a cancellation while nothing runs does nothing
            connection.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(extensions.QueryCanceledError):
        cursor.execute("SELECT pg_sleep(60)")
    stop.set()
    thread.join(30)
    assert connection.get_transaction_status() == extensions.TRANSACTION_STATUS_INERROR
    connection.rollback()


def test_asynchronous_connections_work(connect: Connect) -> None:
    def wait(connection: Any) -> None:
        while (state := connection.poll()) != extensions.POLL_OK:
            select.select([connection] * (state == extensions.POLL_READ), [connection] * (state == extensions.POLL_WRITE), [], 30)

    connection = connect(async_=1)
    wait(connection)
    cursor = connection.cursor()
    cursor.execute("INSERT INTO t VALUES (1) RETURNING a")
    wait(connection)
    assert cursor.fetchone() == (1,)
    cursor.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        wait(connection)
    connection.close()


def test_classes_of_the_application_stay_what_they_are(connect: Connect) -> None:
    class Own(extensions.connection):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self.mark = "own"

        def cursor(self, *arguments: Any, **keywords: Any) -> Any:
            keywords.setdefault("cursor_factory", extras.RealDictCursor)
            return super().cursor(*arguments, **keywords)

    connection = connect(connection_factory=Own)
    assert isinstance(connection, Own)
    assert connection.mark == "own"
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 AS one")
        assert cursor.fetchall() == [{"one": 1}]
        assert isinstance(cursor, extras.RealDictCursor)
    log = io.StringIO()
    logging = connect(connection_factory=extras.LoggingConnection)
    logging.initialize(log)
    logging.cursor().execute("SELECT 2")
    assert log.getvalue() == "SELECT 2\n"


def test_a_pool_of_psycopg2_works(session: Session, url: str) -> None:
    with gates.Gate(session) as gate:
        connections = pool.ThreadedConnectionPool(1, 2, url, connection_factory=gate.factory())
        first = connections.getconn()
        insert(first, 1)
        connections.putconn(first)  # which rolls back
        assert count(session) == 0
        assert connections.getconn() is first
        connections.closeall()
        assert first.closed


def test_the_connection_tells_where_it_was_asked_to_lead(connect: Connect, url: str) -> None:
    connection = connect(password="secret", application_name="x")
    told = extensions.parse_dsn(connection.dsn)
    with psycopg.connect(url) as real:
        assert (told["host"], told["dbname"]) == (real.info.host, real.info.dbname)
        assert connection.info.dbname == real.info.dbname
    assert "secret" not in connection.dsn
    assert "secret" not in str(connection.info.dsn_parameters)


def test_neither_parameters_nor_the_environment_lead_past_the_sandbox(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOSTADDR": "192.0.2.1", "PGHOST": "nowhere", "PGSSLMODE": "verify-full", "PGPORT": "1"}.items():
        monkeypatch.setenv(name, value)
    insert(connect(sslmode="require", hostaddr="192.0.2.1", port=2, channel_binding="require", connect_timeout=3), 1)


def test_a_connection_kept_for_later_fails_rather_than_writing_for_real(session: Session, url: str) -> None:
    with gates.Gate(session) as gate:
        kept = gate.connect(url)
        insert(kept, 1)
        kept.rollback()
        assert gate._folder.exists()
        folder = gate._folder
    with pytest.raises(psycopg2.OperationalError, match="closed"):
        insert(kept, 2)
    assert not folder.exists()


def test_a_lost_session_is_an_error_as_in_production(connect: Connect, session: Session, url: str) -> None:
    connection = connect()
    insert(connection, 1)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 30000)", [session.real.info.backend_pid])
    with pytest.raises(psycopg2.OperationalError, match="terminating connection") as raised:
        insert(connection, 2)
    assert raised.value.pgcode == "57P01"
    assert connection.closed
    with pytest.raises(psycopg2.InterfaceError):
        connection.cursor()
    session.real.close()


def test_what_nobody_has_any_more_is_rolled_back_at_once(connect: Connect, session: Session) -> None:
    """D9: also a connection in a cycle, which only the garbage collector finds."""
    for cycle in (False, True):
        connection = connect()
        insert(connection, 1)
        if cycle:
            holder = [connection]
            holder.append(holder)
            del holder
        del connection
        gc.collect()
        assert count(session) == 0
