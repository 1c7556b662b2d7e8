"""What transaction numbers prove, and what they do not (with a real server's numbers)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.reset.transactions import CommitTracker, Moment, Since, Verdict, prepare
from dbclone.reset.truncate.control import now
from dbclone.server.server import Server


@pytest.fixture
def connection(server: Server) -> Iterator[psycopg.Connection[Any]]:
    server.connection.execute("CREATE DATABASE witnessed")
    with psycopg.connect(server.database("witnessed").url, autocommit=True) as found:
        found.execute("CREATE TABLE t (v int); CREATE SEQUENCE s; SELECT setval('s', 1, false)")
        yield found
    server.connection.execute("DROP DATABASE witnessed WITH (FORCE)")


def judged(
    connection: psycopg.Connection[Any], commits: CommitTracker, begun: Moment | None = None
) -> Verdict:
    """Ask in both ways, which must give the same answer."""
    with contextlib.suppress(psycopg.errors.DuplicatePreparedStatement):
        for text in prepare("asked"):
            connection.execute(text)
    moment, statuses = commits.statuses(connection.pgconn.exec_(commits.question("asked")))
    again = commits.statuses(connection.pgconn.exec_(commits.text))
    if statuses is not None:
        assert (moment, statuses) == again
    assert again[1] is not None
    return commits.classify(*again, begun)


def rows(connection: psycopg.Connection[Any], since: Since) -> list[int]:
    """Return what is new in the table."""
    return [
        v
        for (v,) in connection.execute(
            sql.SQL("SELECT v FROM t WHERE {}").format(sql.SQL(since.newer()))
        )
    ]


def test_reading_changes_nothing(connection: psycopg.Connection[Any]) -> None:
    commits = CommitTracker(now(connection))
    connection.execute("SELECT count(*) FROM t")
    assert commits.unchanged(now(connection))
    assert judged(connection, commits) is Verdict.NOTHING


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO t VALUES (1)",
        "SELECT nextval('s')",
        "SELECT setval('s', 5)",
        "CREATE TABLE u ()",
        "SELECT lo_create(0)",
        "TRUNCATE t",
    ],
)
def test_every_write_shows(connection: psycopg.Connection[Any], write: str) -> None:
    commits = CommitTracker(now(connection))
    connection.execute(write.encode())
    assert not commits.unchanged(now(connection))


def test_a_sequence_shows_again_after_it_was_put_back(connection: psycopg.Connection[Any]) -> None:
    """The server logs only each 32nd number of a sequence that goes on; the first after a setval
    always."""
    for _ in range(3):
        connection.execute("SELECT nextval('s'), nextval('s')")
        connection.execute("SELECT setval('s', 1, false)")
        commits = CommitTracker(now(connection))
        connection.execute("SELECT nextval('s')")
        assert not commits.unchanged(now(connection))


def test_what_was_rolled_back_is_nothing_and_what_was_committed_is_not(
    connection: psycopg.Connection[Any],
) -> None:
    commits = CommitTracker(now(connection))
    for _ in range(3):
        with contextlib.suppress(psycopg.Error), connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO t VALUES (1)")
            with connection.transaction():
                connection.execute("INSERT INTO t VALUES (2)")
        assert judged(connection, commits) is Verdict.NOTHING
    connection.execute("INSERT INTO t VALUES (3)")
    assert judged(connection, commits) is Verdict.DURING


def test_before_or_during(connection: psycopg.Connection[Any]) -> None:
    commits = CommitTracker(now(connection))
    connection.execute("INSERT INTO t VALUES (1)")
    begun = now(connection)
    assert judged(connection, commits, begun) is Verdict.BEFORE
    connection.execute("INSERT INTO t VALUES (1)")
    assert judged(connection, commits, begun) is Verdict.DURING


def test_a_transaction_that_is_open_while_asked_is_remembered(
    connection: psycopg.Connection[Any], server: Server
) -> None:
    """One that began before the moment and commits after it is new, though its number is older."""
    with psycopg.connect(server.database("witnessed").url) as other:
        other.execute("INSERT INTO t VALUES (1)")
        connection.execute("INSERT INTO t VALUES (2)")
        moment = now(connection)
        assert not moment.still
        assert len(moment.running) == 1
        commits = CommitTracker(moment)
        assert not commits.unchanged(now(connection))
        assert judged(connection, commits) is Verdict.NOTHING
        other.commit()
    assert judged(connection, commits) is Verdict.DURING
    assert rows(connection, Since(moment)) == [1]


def test_our_own_writes_are_not_new(connection: psycopg.Connection[Any]) -> None:
    moment = now(connection)
    with connection.transaction():
        connection.execute("INSERT INTO t VALUES (1)")
        own = connection.execute("SELECT pg_current_xact_id()::text::int8").fetchone()
    assert own is not None
    commits = CommitTracker(moment)
    commits.settle(Since(moment, (own[0],)), now(connection))
    assert commits.unchanged(now(connection))
    assert judged(connection, commits) is Verdict.NOTHING
    assert rows(connection, commits.since) == []
    connection.execute("INSERT INTO t VALUES (2)")
    assert rows(connection, commits.since) == [2]


def test_too_many_to_ask_for_counts_as_committed(connection: psycopg.Connection[Any]) -> None:
    commits = CommitTracker(now(connection))
    connection.execute(
        "DO $$ BEGIN FOR i IN 1..6000 LOOP BEGIN INSERT INTO t VALUES (1); RAISE EXCEPTION"
        " 'x'; EXCEPTION WHEN OTHERS THEN NULL;"
        " END; END LOOP; END $$"
    )
    assert judged(connection, commits) is Verdict.DURING


def test_numbers_wrap(connection: psycopg.Connection[Any]) -> None:
    """A moment beyond 32 bits: rows have the lower half."""
    moment = Moment("8589934600:8589934600:", 8589934600 % (1 << 32) - 3)
    assert moment.still
    assert Since(moment, (8589934601,)).values == ("8", "{}", "{9}")


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_however_many_numbers_were_given_out_one_that_committed_is_not_overlooked(
    connection: psycopg.Connection[Any], count: int
) -> None:
    for committed in {0, count // 2, count - 1}:
        commits = CommitTracker(now(connection))
        for number in range(count):
            with connection.transaction(force_rollback=number != committed):
                connection.execute("INSERT INTO t VALUES (1)")
        assert judged(connection, commits) is Verdict.DURING
