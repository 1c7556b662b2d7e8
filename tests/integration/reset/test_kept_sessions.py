"""What an application's own session carries from one test to the next, and what it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import peewee
import psycopg
import pytest

from dbclone.clone.clone import Clone

from ...conftest import Project
from ...oracle import fingerprint
from ...shop import identity

STATE = """SELECT current_setting('work_mem'), to_regclass('pg_temp.passing') IS NOT NULL,
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND classid = 0 AND objid = 42),
    (SELECT count(*) FROM pg_listening_channels())"""
CARRIED = (
    "SET work_mem = '77MB'",
    "CREATE TEMP TABLE passing (v int)",
    "SELECT pg_advisory_lock(42)",
    "LISTEN news",
)


@pytest.fixture
def handle(fresh_clone: Clone) -> Iterator[peewee.PostgresqlDatabase]:
    """An application's handle over psycopg 3, of which a connection is kept for the whole run."""
    found = peewee.PostgresqlDatabase(
        fresh_clone.name,
        **{k: v for k, v in fresh_clone.dsn.kwargs.items() if k != "dbname"},
        prefer_psycopg3=True,
    )
    fresh_clone.handle = found
    found.connect()
    yield found
    found.close()


def state(handle: peewee.PostgresqlDatabase) -> tuple[object, ...]:
    return tuple(handle.execute_sql(STATE).fetchone())


def carry(handle: peewee.PostgresqlDatabase, *statements: str) -> None:
    for statement in statements:
        handle.execute_sql(statement)


@pytest.mark.parametrize("reset", ["rollback", "clone"])
def test_what_belongs_to_a_session_ends_with_the_test(
    fresh_clone: Clone, handle: peewee.PostgresqlDatabase, reset: str
) -> None:
    """C14: settings, temporary tables, advisory locks and, where it is allowed at all, LISTEN."""
    for _ in range(3):
        with fresh_clone.isolated(reset, "test"):
            assert state(handle) == ("4MB", False, 0, 0)
            carry(handle, *(CARRIED[:3] if reset == "rollback" else CARRIED))
            assert state(handle) == ("77MB", True, 1, 0 if reset == "rollback" else 1)
    with fresh_clone.isolated("truncate", "test"):
        assert state(handle) == ("4MB", False, 0, 0)


def test_under_truncate_a_connection_that_the_application_keeps_keeps_it(
    fresh_clone: Clone, handle: peewee.PostgresqlDatabase
) -> None:
    """C14: as the README says, until the application closes it."""
    truth = fingerprint(fresh_clone.url)
    with fresh_clone.isolated("truncate", "test") as isolation:
        carry(handle, *CARRIED)
        isolation.execute("SET work_mem = '77MB'")
    with fresh_clone.isolated("truncate", "next") as isolation:
        assert state(handle) == ("77MB", True, 1, 1)
        assert isolation.execute("SELECT current_setting('work_mem')").fetchone() == ("4MB",)
        handle.close()
        assert state(handle) == ("4MB", False, 0, 0)
    assert fingerprint(fresh_clone.url) == truth


def test_a_reset_spoils_no_statement_that_a_kept_connection_has_prepared(
    fresh_clone: Clone,
) -> None:
    """C20: neither what it deletes, nor what it truncates, nor what it looks at."""
    before = identity(fresh_clone)
    with fresh_clone.connect(autocommit=True, prepare_threshold=0) as kept:
        for number in range(4):
            with fresh_clone.isolated("truncate", "test"):
                assert len(kept.execute("SELECT * FROM country").fetchall()) == 3
                assert kept.execute("SELECT * FROM parent").fetchall() == []
                kept.execute(
                    "INSERT INTO parent (name) SELECT 'n' || g FROM generate_series(1, %s) AS g",
                    [1 + 20000 * (number // 2)],
                )
                kept.execute("UPDATE country SET name = name || %s", [str(number)])
            names = kept.execute(
                "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql IS NULL"
            ).fetchone()
            assert names is not None
            assert names[0] >= 4
    assert identity(fresh_clone) == before


def test_ddl_that_was_rolled_back_spoils_no_statement(
    fresh_clone: Clone, handle: peewee.PostgresqlDatabase
) -> None:
    """C20: the same statements, prepared in every test, over a table that every other test has
    changed."""
    for number in range(4):
        with fresh_clone.isolated("rollback", "test") as isolation:
            connection = isolation.connect(autocommit=True, prepare_threshold=0)
            if number % 2:
                handle.execute_sql("ALTER TABLE country ADD COLUMN extra int DEFAULT 7")
            for _ in range(2):
                rows = connection.execute("SELECT * FROM country").fetchall()
                assert {len(row) for row in rows} == {4 if number % 2 else 3}
                assert len(handle.execute_sql("SELECT * FROM country").fetchall()) == 3


TRACEBACK = """
import os, psycopg, pytest
from models import User

@pytest.mark.parametrize("how", ["reads", "iterates", "writes"])
def test_fails(dbclone, how):
    User.create(name=how)
    connection = {connect}
    cursor = connection.execute('SELECT name FROM "user"')
    if how == "iterates":
        cursor = connection.cursor("named")
        cursor.execute("SELECT generate_series(1, 1000)")
        cursor.fetchone()
    if how == "writes":
        connection.execute('INSERT INTO "user" (name) VALUES (%s)', ["left open"])
    raise RuntimeError("the traceback keeps connection and cursor alive")

def test_next(dbclone):
    assert User.select().count() == 0
"""


@pytest.mark.parametrize(
    ("reset", "connect", "outcome"),
    [
        ("rollback", "dbclone.connect()", "3 failed, 1 passed"),
        ("truncate", "dbclone.connect()", "3 failed, 1 passed"),
        ("clone", "psycopg.connect(os.environ['DATABASE_URL'])", "3 failed, 1 passed"),
        # What is still open after a write, through a connection that dbclone cannot know, is in the
        # way: an error, not a wait.
        ("truncate", "psycopg.connect(os.environ['DATABASE_URL'])", "3 failed, 1 passed, 1 error"),
    ],
)
def test_what_the_traceback_of_a_failed_test_keeps_alive_disturbs_no_other(
    project: Project, reset: str, connect: str, outcome: str
) -> None:
    """D15."""
    project.configure(reset=reset, lock_timeout=0.3)
    project.write(test_a=TRACEBACK.format(connect=connect))
    done = project.pytest("-q", "-p", "no:randomly")
    assert f"\n{outcome} in " in done.stdout, done.stdout


def test_a_sessions_state_is_no_writing(fresh_clone: Clone) -> None:
    """C14: nor is it in the way of a reset."""
    before = identity(fresh_clone)
    with psycopg.connect(fresh_clone.url, autocommit=True) as kept:
        for statement in CARRIED:
            kept.execute(statement.encode())
        for _ in range(2):
            with fresh_clone.isolated("truncate", "test"):
                kept.execute("INSERT INTO passing VALUES (1)")
                kept.execute("INSERT INTO parent (name) VALUES ('x')")
        assert kept.execute("SELECT count(*) FROM passing").fetchone() == (2,)
    assert identity(fresh_clone) == before


@pytest.mark.parametrize("begun", ["a statement", "rows that are read", "rows that are written"])
def test_what_a_connection_had_begun_when_the_test_ended_does_not_go_on(
    fresh_clone: Clone, begun: str
) -> None:
    """C20: the server would finish it after the reset, though its client has gone."""
    truth = fingerprint(fresh_clone.url)
    for _ in range(5):
        with fresh_clone.isolated("truncate", "test") as isolation:
            pgconn = isolation.connect(autocommit=True).pgconn
            if begun == "a statement":
                pgconn.send_query(
                    b"SELECT pg_sleep(0.2); INSERT INTO parent (name) VALUES ('late')"
                )
                while pgconn.flush():
                    pass
                time.sleep(0.02)
            elif begun == "rows that are read":
                pgconn.exec_(
                    b"COPY (SELECT nextval('free') FROM generate_series(1, 100000)) TO STDOUT"
                )
            else:
                pgconn.exec_(b"COPY parent (name) FROM STDIN")
                pgconn.put_copy_data(b"".join(b"row %d\n" % number for number in range(50)))
        if begun == "a statement":
            time.sleep(0.3)
        with fresh_clone.isolated("truncate", "next"):
            assert fingerprint(fresh_clone.url) == truth
