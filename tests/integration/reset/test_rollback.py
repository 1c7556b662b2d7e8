"""What a rollback notices at its end: a boundary that was destroyed, a connection that was lost, a
lock that was kept."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from dbclone.reset.rollback import Level
from dbclone.reset.sequences import ask, restore
from dbclone.reset.transactions import CommitTracker, Verdict
from dbclone.reset.truncate.control import now
from dbclone.sandbox.session import Session
from dbclone.server.server import Server


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    name = f"sandbox_{uuid.uuid4().hex[:8]}"
    server.connection.execute(
        psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
    )
    found = server.database(name).url
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (a int UNIQUE)")
    yield found
    server.connection.execute(
        psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name))
    )


@pytest.mark.parametrize("escape", ["COMMIT", "COMMIT; BEGIN", "ROLLBACK"])
def test_a_boundary_that_was_destroyed_is_noticed_at_the_end(url: str, escape: str) -> None:
    """D1, D2: by a path that the sandbox cannot see."""
    with psycopg.connect(url, autocommit=True) as real:
        session = Session(real)
        level = Level(session)
        level.enter()
        session.connect(autocommit=True).pgconn.exec_(escape.encode())
        assert "ended the outer transaction" in level.leave().spoiled
        level.enter()
        assert level.leave().spoiled == ""


def test_a_connection_that_was_killed_is_noticed_at_the_end(url: str) -> None:
    """D12."""
    with (
        psycopg.connect(url, autocommit=True) as real,
        psycopg.connect(url, autocommit=True) as killer,
    ):
        session = Session(real)
        level = Level(session)
        level.enter()
        killer.execute("SELECT pg_terminate_backend(%s, 5000)", [real.info.backend_pid])
        assert "was lost" in level.leave().spoiled


def test_session_locks_do_not_outlive_the_test(url: str) -> None:
    """C14."""
    with psycopg.connect(url, autocommit=True) as real:
        session = Session(real)
        level = Level(session)
        level.enter()
        session.connect(autocommit=True).execute("SELECT pg_advisory_lock(42)")
        level.leave()
        assert real.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42"
        ).fetchone() == (0,)


def test_statements_prepared_by_sql_do_not_outlive_the_test(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as real:
        session, commits = Session(real), CommitTracker(now(real))
        for _ in range(3):
            level = Level(session, None, commits)
            level.enter()
            connection = session.connect(autocommit=True)
            connection.execute("PREPARE mine AS SELECT 1")
            assert connection.execute("EXECUTE mine").fetchone() == (1,)
            level.leave()
            session.disconnect()
        assert real.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'"
        ).fetchone() == (0,)


def test_putting_sequences_back_leaves_nothing_for_the_next_audit_to_look_for(url: str) -> None:
    """Or else every second test would pay for a look at all tables."""
    with psycopg.connect(url, autocommit=True) as real:
        real.execute("CREATE SEQUENCE counter")
        session, positions, commits = Session(real), ask(real), CommitTracker(now(real))
        for _ in range(3):
            level = Level(session, positions, commits)
            level.enter()
            session.connect(autocommit=True).execute("SELECT nextval('counter')")
            assert level.leave().verdict is Verdict.NOTHING
            assert real.execute("SELECT last_value, is_called FROM counter").fetchone() == (
                1,
                False,
            )


def test_sequences_that_cannot_be_put_back_leave_no_transaction_open(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as real:
        real.execute("CREATE SEQUENCE short MAXVALUE 9")
        positions = [replace(one, last=99) for one in ask(real) if one.name == "short"]
        with pytest.raises(psycopg.errors.NumericValueOutOfRange):
            restore(real, positions)
        assert real.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
