"""Deferred constraints, modes of transactions and their clock inside a rollback: as for real,
refused, or said in the README."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from dbclone.clone.clone import Clone

from ...oracle import fingerprint

Connect = Callable[[], "psycopg.Connection[Any]"]
BROKEN = (
    "INSERT INTO ring_b VALUES (1, 7)"  # whose reference is checked at COMMIT, and leads nowhere
)
RIGHT = "INSERT INTO ring_a VALUES (7, NULL)"
COUNT = "SELECT count(*) FROM ring_b"
READ = "SELECT count(*) FROM parent"
WRITE = "INSERT INTO parent (name) VALUES ('x')"
LATE = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"


def seen(connection: psycopg.Connection[Any], program: tuple[str, ...]) -> list[Any]:
    """Return what each statement answers: its rows, its tag, or its error."""
    found: list[Any] = []
    for statement in program:
        try:
            cursor = connection.execute(statement.encode())
            found.append(cursor.fetchall() if cursor.description else cursor.statusmessage)
        except psycopg.Error as error:
            found.append(error.sqlstate)
    return found


def both(clone: Clone, program: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """Run a program for real and in a rollback; the clone must equal its template after each."""
    truth = fingerprint(clone.url, sequences=False)
    results = []
    for reset in ("truncate", "rollback"):
        with clone.isolated(reset, "test") as isolation:
            results.append(seen(isolation.connect(autocommit=True), program))
        assert fingerprint(clone.url, sequences=False) == truth
    return results[0], results[1]


@pytest.mark.parametrize(
    "program",
    [
        ("BEGIN", BROKEN, "COMMIT", READ, WRITE, READ),
        (
            "BEGIN",
            BROKEN,
            RIGHT,
            "SAVEPOINT a",
            "SAVEPOINT a",
            "SET TRANSACTION READ ONLY",
            "COMMIT",
            COUNT,
            WRITE,
            READ,
        ),
        ("BEGIN", BROKEN, "SAVEPOINT a", "SET TRANSACTION READ ONLY", "COMMIT", COUNT, WRITE, READ),
        ("BEGIN", BROKEN, RIGHT, "SET TRANSACTION READ ONLY", "COMMIT", COUNT, WRITE, READ),
        ("BEGIN", BROKEN, RIGHT, "COMMIT", COUNT),
        ("BEGIN", BROKEN, "SET CONSTRAINTS ALL IMMEDIATE", READ, "ROLLBACK", READ),
        ("BEGIN", "SAVEPOINT a", BROKEN, "RELEASE a", "COMMIT", READ),
        ("BEGIN", BROKEN, "ROLLBACK", COUNT),
        (BROKEN, COUNT),
        ("BEGIN", BROKEN),
    ],
)
def test_a_deferred_constraint_fails_where_it_would_for_real(
    fresh_clone: Clone, program: tuple[str, ...]
) -> None:
    """D4: at the application's own COMMIT, so that the failure is this test's and not lost in the
    rollback."""
    real, sandboxed = both(fresh_clone, program)
    assert sandboxed == real
    violated = (
        program not in (("BEGIN", BROKEN), ("BEGIN", BROKEN, "ROLLBACK", COUNT))
        and RIGHT not in program
    )
    assert ("23503" in real) == violated


@pytest.mark.parametrize(
    "program",
    [
        ("BEGIN READ ONLY", WRITE, "ROLLBACK", WRITE, READ),
        ("BEGIN", "SET TRANSACTION READ ONLY", READ, WRITE, "COMMIT", WRITE, READ),
        ("BEGIN", WRITE, "SET TRANSACTION READ ONLY", WRITE, "ROLLBACK", READ),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", WRITE, READ, "COMMIT", READ),
        ("BEGIN", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", WRITE, "COMMIT", READ),
        ("BEGIN", READ, LATE, READ, "COMMIT", READ),
        (LATE, WRITE, READ),
        (
            "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            READ,
            WRITE,
            "COMMIT",
            READ,
        ),
    ],
)
def test_the_modes_of_a_transaction_are_taken_or_explained(
    fresh_clone: Clone, program: tuple[str, ...]
) -> None:
    """D11: an isolation level is accepted as the first statement, and later refused with the
    server's own error."""
    real, sandboxed = both(fresh_clone, program)
    assert sandboxed == real


def test_time_stands_still_in_a_rollback_and_nowhere_else(fresh_clone: Clone) -> None:
    """D6: as the README says: now() is the beginning of the outer transaction, clock_timestamp()
    moves on."""
    question = "SELECT now(), clock_timestamp() FROM pg_sleep(0.001)"
    for reset, still in (("rollback", True), ("truncate", False)):
        with fresh_clone.isolated(reset, "test") as isolation:
            (first,), (second,) = (isolation.execute(question).fetchall() for _ in range(2))
            assert (first[0] == second[0]) == still
            assert first[1] < second[1]
