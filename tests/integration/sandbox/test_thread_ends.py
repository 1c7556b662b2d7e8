"""Threads that are still busy when the test ends, and whose notices and timeouts are whose."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from dbclone import SandboxLimit
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ..twice import TIMEOUT, table
from .test_threads import INSERT, Connection, database, run, values

pytestmark = pytest.mark.clone_of(make=table, handle=database)


@pytest.mark.parametrize("left", ["statement", "copy", "stream", "pipeline"])
def test_a_thread_that_is_still_busy_when_the_test_ends(clone: Clone, left: str) -> None:
    """It is stopped, named in the report, and the next test finds nothing of it."""
    busy, stop = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        with contextlib.suppress(psycopg.Error):
            if left == "statement":
                busy.set()
                connection.execute("INSERT INTO t SELECT 1 FROM pg_sleep(60)")
            elif left == "copy":
                with connection.cursor().copy("COPY t (a) FROM STDIN") as copy:
                    busy.set()
                    stop.wait(30)
                    copy.write_row([1])
            elif left == "pipeline":
                with connection.pipeline():
                    busy.set()
                    stop.wait(30)
                    connection.execute(INSERT, [1])
            else:
                for _ in connection.cursor().stream("SELECT generate_series(1, 100000)"):
                    busy.set()
                    stop.wait(30)
        with contextlib.suppress(psycopg.Error):
            connection.execute(INSERT, [7])

    with clone.isolated("rollback", "tests/test_a.py::test_busy") as db:
        connection = db.connect(autocommit=True)
        thread = threading.Thread(target=work, args=[connection])
        thread.start()
        assert busy.wait(30)
        while (
            left == "statement" and connection.info.transaction_status != TransactionStatus.ACTIVE
        ):
            assert thread.is_alive()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert any(
        "tests/test_a.py::test_busy" in note and "a connection of the application is" in note
        for note in clone.report.notes
    )
    clone.report.notes.clear()
    with clone.isolated("rollback", "next") as db:
        db.execute(INSERT, [1])
        assert values(db.connection) == [1]


def test_notices_reach_the_connection_that_caused_them(both: Callable[..., Any]) -> None:
    def program(db: Isolation) -> Any:
        first, second = db.connect(autocommit=True), db.connect(autocommit=True)
        heard: list[Any] = []
        first.add_notice_handler(
            lambda diagnostic: heard.append(("first", diagnostic.message_primary))
        )
        second.add_notice_handler(
            lambda diagnostic: heard.append(("second", diagnostic.message_primary))
        )
        for number, connection in enumerate((first, second, first)):
            connection.execute(f"DO $$ BEGIN RAISE NOTICE 'n{number}'; END $$")
        return heard

    assert both(program) == [("first", "n0"), ("second", "n1"), ("first", "n2")]


def test_the_timeout_is_the_setting(clone: Clone) -> None:
    assert clone.server.settings.lock_timeout == TIMEOUT
    with clone.isolated("rollback", "test") as db:
        holder = db.connect(autocommit=True)
        with holder.pipeline(), pytest.raises(SandboxLimit) as caught:
            run(lambda: db.execute("SELECT 1"))
    assert f"lock_timeout is {TIMEOUT:g} s" in caught.value.detail
