"""Connections in several threads see the test's data and take turns; what cannot be as in
production is an error in time."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peewee
import psycopg
import pytest
from flask import Flask
from psycopg.pq import TransactionStatus
from werkzeug.serving import make_server

from dbclone import SandboxLimit
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ..twice import refused, table

INSERT = "INSERT INTO t VALUES (%s)"
database = peewee.PostgresqlDatabase(None, prefer_psycopg3=True)

pytestmark = pytest.mark.clone_of(make=table, handle=database)
Connection = psycopg.Connection[Any]


class T(peewee.Model):  # type: ignore[misc]
    a = peewee.IntegerField(primary_key=True)
    b = peewee.TextField(null=True)

    class Meta:
        database = database
        table_name = "t"


def run(what: Callable[[], Any]) -> Any:
    """Run something in another thread to its end, and return its result or raise its error."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(what).result(30)


def values(connection: Connection) -> list[int]:
    return [a for (a,) in connection.execute("SELECT a FROM t ORDER BY a").fetchall()]


def test_a_thread_pool_over_the_applications_handle(both: Callable[..., Any]) -> None:
    """D8."""

    def program(db: Isolation) -> Any:
        T.create(a=1000)

        def job(number: int) -> bool:
            with database.connection_context():
                T.create(a=number)
                with contextlib.suppress(peewee.IntegrityError):
                    T.create(a=1000)
                T.update(b=str(number)).where(T.a == number).execute()
                return bool(T.get(T.a == 1000))

        with ThreadPoolExecutor(4) as executor:
            done = list(executor.map(job, range(40)))
        with database.atomic():
            T.delete().where(T.a < 20).execute()
        return (
            done,
            T.select().count(),
            values(db.connection),
            [t.b for t in T.select().order_by(T.a)],
        )

    assert both(program)[1] == 21


def test_a_live_server_in_a_thread(both: Callable[..., Any]) -> None:
    """Every request in a thread of its own, in a transaction; one of them fails and is rolled back."""
    app = Flask("shop")

    @app.get("/add/<int:a>")
    def add(a: int) -> Any:
        with database.connection_context():
            try:
                with database.atomic():
                    T.create(a=a)
                    with database.atomic():
                        T.update(b=str(a)).where(T.a == a).execute()
                    if a % 3 == 0:
                        T.create(a=a)
            except peewee.IntegrityError:
                return "twice", 409
            return str(T.select().count())

    def program(db: Isolation) -> Any:
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        answers: list[Any] = []
        try:
            for a in range(1, 8):
                try:
                    with urllib.request.urlopen(
                        f"http://127.0.0.1:{server.server_port}/add/{a}", timeout=30
                    ) as response:
                        answers.append(response.read())
                except urllib.error.HTTPError as error:
                    with error:
                        answers.append(error.code)
                T.create(a=100 + a)
        finally:
            server.shutdown()
            thread.join(30)
            server.server_close()
        return answers, values(db.connection)

    assert both(program)[0] == [b"1", b"3", 409, b"6", b"8", 409, b"11"]


def test_threads_that_share_one_connection(both: Callable[..., Any]) -> None:
    def program(db: Isolation) -> Any:
        connection = db.connect(autocommit=True)

        def job(number: int) -> Any:
            with connection.cursor() as cursor:
                cursor.executemany(INSERT, [(number * 10 + i,) for i in range(5)])
                return cursor.execute(
                    "SELECT count(*) FROM t WHERE a / 10 = %s", [number]
                ).fetchone()

        with ThreadPoolExecutor(8) as executor:
            return list(executor.map(job, range(20))), len(values(connection))

    assert both(program)[1] == 100


def test_a_thread_waits_for_the_transaction_of_another(both: Callable[..., Any]) -> None:
    """As it would for its locks, if it needed one; and then both have committed."""

    def program(db: Isolation) -> Any:
        outer, beside = db.connect(), db.connect(autocommit=True)
        outer.execute(INSERT, [1])
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(lambda: refused(lambda: beside.execute(INSERT, [1])))
            outer.execute(INSERT, [2])
            outer.commit()
            return waiting.result(30), values(db.connection)

    assert both(program) == ("23505", [1, 2])


def test_blocks_of_many_threads_come_one_after_the_other(both: Callable[..., Any]) -> None:
    def program(db: Isolation) -> Any:
        def job(number: int) -> None:
            with db.connect(autocommit=True) as connection:
                for i in range(5):
                    with contextlib.suppress(ZeroDivisionError), connection.transaction():
                        connection.execute(INSERT, [number * 10 + i])
                        connection.execute("UPDATE t SET b = 'x' WHERE a = %s", [number * 10 + i])
                        1 // (i % 2)

        with ThreadPoolExecutor(8) as executor:
            list(executor.map(job, range(12)))
        return values(db.connection)

    assert len(both(program)) == 24


def test_waiting_for_a_transaction_that_waits_oneself_is_an_error_in_time(clone: Clone) -> None:
    """D8: a deadlock, here as in production."""
    with clone.isolated("rollback", "test") as db:
        outer, beside = db.connect(), db.connect(autocommit=True)
        outer.execute(INSERT, [1])
        with pytest.raises(SandboxLimit, match="another connection has written"):
            beside.execute("SELECT 1")  # the same thread need not wait to know
        started = time.monotonic()
        with pytest.raises(
            SandboxLimit, match="waits for a transaction, which has written"
        ) as caught:
            run(lambda: beside.execute("SELECT 1"))
        assert time.monotonic() - started < 20
        assert 'reset="truncate"' in caught.value.hint
        outer.commit()
        run(lambda: beside.execute(INSERT, [2]))
        assert values(db.connection) == [1, 2]


def test_reading_in_the_middle_of_anothers_transaction_refuses_nothing(
    both: Callable[..., Any],
) -> None:
    def program(db: Isolation) -> Any:
        first = db.connect()
        first.execute("SELECT 1")

        def rows(query: str) -> Any:
            return run(lambda: db.execute(query).fetchall())

        seen = [rows(query) for query in ("SELECT a FROM t", "SHOW port", "TABLE t")]
        run(lambda: db.execute(psycopg.sql.SQL("SELECT {}").format(1)))
        first.execute(INSERT, [1])
        first.rollback()
        return len(seen), values(db.connection)

    assert both(program) == (3, [])


@pytest.mark.parametrize("held", ["pipeline", "copy", "stream"])
@pytest.mark.parametrize("where", ["this thread", "another thread"])
def test_who_holds_the_session_too_long_is_an_error_in_time(
    clone: Clone, held: str, where: str
) -> None:
    with clone.isolated("rollback", "test") as db, contextlib.ExitStack() as stack:
        holder, other = db.connect(autocommit=True), db.connect(autocommit=True)
        if held == "pipeline":
            stack.enter_context(holder.pipeline())
            holder.execute("SELECT 1")
        elif held == "copy":
            stack.enter_context(holder.cursor().copy("COPY t (a) FROM STDIN")).write_row([1])
        else:
            rows = holder.cursor().stream("SELECT generate_series(1, 3)")
            next(rows)
            stack.callback(rows.close)  # type: ignore[attr-defined]
        started = time.monotonic()
        with pytest.raises(SandboxLimit, match=f"waits for {where}"):
            other.execute("SELECT 1") if where == "this thread" else run(
                lambda: other.execute("SELECT 1")
            )
        assert time.monotonic() - started < 20
        stack.close()
        other.execute(INSERT, [2])
        assert values(db.connection) == ([1, 2] if held == "copy" else [2])


def test_a_long_statement_in_one_thread_is_an_error_in_another(clone: Clone) -> None:
    with clone.isolated("rollback", "test") as db:
        sleeping = db.connect(autocommit=True)
        thread = threading.Thread(
            target=lambda: refused(lambda: sleeping.execute("SELECT pg_sleep(60)"))
        )
        thread.start()
        while sleeping.info.transaction_status != TransactionStatus.ACTIVE:
            assert thread.is_alive()
        db.connection.cancel()  # another connection's statement is none of its business
        with pytest.raises(SandboxLimit, match="another thread"):
            db.execute("SELECT 1")
        sleeping.cancel()
        thread.join(30)
        assert not thread.is_alive()
        assert db.execute("SELECT 1").fetchone() == (1,)
