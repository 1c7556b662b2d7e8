"""psycopg2 connections of every make lead into the sandbox and nowhere else."""

from __future__ import annotations

import io
import select
import threading
from typing import Any

import psycopg
import psycopg2
import pytest
from psycopg2 import extensions, extras, pool

from dbclone.sandbox.session import Session
from dbclone.sandbox.wire.psycopg2 import Connector

from .psycopg2_programs import Connect, count, insert


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
            select.select(
                [connection] * (state == extensions.POLL_READ),
                [connection] * (state == extensions.POLL_WRITE),
                [],
                30,
            )

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
    with Connector(session) as gate:
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


def test_neither_parameters_nor_the_environment_lead_past_the_sandbox(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOSTADDR": "192.0.2.1",
        "PGHOST": "nowhere",
        "PGSSLMODE": "verify-full",
        "PGPORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    insert(
        connect(
            sslmode="require",
            hostaddr="192.0.2.1",
            port=2,
            channel_binding="require",
            connect_timeout=3,
        ),
        1,
    )


def test_a_lost_session_is_the_error_that_it_is_in_production(
    connect: Connect, session: Session, url: str
) -> None:
    seen: list[Any] = []
    with psycopg.connect(url, autocommit=True) as other:
        for connection in (psycopg2.connect(url), connect()):
            cursor = connection.cursor()
            cursor.execute("SELECT pg_backend_pid()")
            other.execute("SELECT pg_terminate_backend(%s, 30000)", cursor.fetchone())
            with pytest.raises(psycopg2.OperationalError) as raised:
                cursor.execute("SELECT 1")
            seen.append(
                (type(raised.value), str(raised.value), raised.value.pgcode, connection.closed)
            )
            with pytest.raises(psycopg2.InterfaceError):
                connection.cursor()
    assert seen[0] == seen[1]
    session.real.close()


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
