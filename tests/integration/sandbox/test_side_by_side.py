"""Several connections side by side in one sandbox: what they do ends as it would for real, or is
refused; never otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from dbclone.errors import SandboxLimit
from dbclone.reset.rollback import Level
from dbclone.sandbox.session import Session

Step = tuple[int, str]
OPERATIONS = [
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "read",
    "fail",
    "write",
    "write",
]
PROGRAMS = strategies.lists(
    strategies.tuples(strategies.integers(0, 2), strategies.sampled_from(OPERATIONS)), max_size=14
)


@pytest.fixture(scope="module")
def real(url: str) -> Iterator[list[psycopg.Connection[Any]]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(4)]


def rows(connection: psycopg.Connection[Any]) -> list[Any]:
    return connection.execute("SELECT a FROM t ORDER BY a").fetchall()


def run(program: list[Step], connections: list[psycopg.Connection[Any]]) -> list[Any]:
    """Return the SQLSTATE of each step, and in the end the rows that another connection sees when
    all have ended."""
    seen: list[Any] = []
    for number, (who, operation) in enumerate(
        [*program, (0, "COMMIT"), (1, "ROLLBACK"), (2, "COMMIT")]
    ):
        connection = connections[who]
        try:
            if operation == "write":
                connection.execute("INSERT INTO t VALUES (%s)", [number])
            elif operation == "read":
                seen.append(rows(connection))
            else:
                connection.execute({"fail": "SELECT 1/0"}.get(operation, operation).encode())
            seen.append(connection.info.transaction_status)
        except psycopg.Error as error:
            seen.append(error.sqlstate)
    return [*seen, rows(connections[3])]


@pytest.mark.slow
def test_programs_of_three_connections_end_as_they_would_for_real_or_are_refused(
    url: str, real: list[psycopg.Connection[Any]]
) -> None:
    """D8: the rows that each reads, those that are there in the end, and each step's error and
    transaction status."""
    counted = {"equal": 0, "refused": 0}

    @settings(
        max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(PROGRAMS)
    def check(program: list[Step]) -> None:
        real[3].execute("TRUNCATE t")
        expected = run(program, real)
        real[3].execute("TRUNCATE t")
        found = Session(lone)
        level = Level(found)
        level.enter()
        try:
            assert run(program, [found.connect(autocommit=True) for _ in range(4)]) == expected
            counted["equal"] += 1
        except SandboxLimit:
            counted["refused"] += 1
        finally:
            level.leave()
            lone.execute(
                "DEALLOCATE ALL"
            )  # another Session over the same connection gives the same names

    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as lone:
        check()
    assert counted["equal"] > counted["refused"], counted


def test_what_was_committed_meanwhile_survives_the_rollback_of_a_transaction_that_only_read(
    session: Session,
) -> None:
    """What a test's session is in, once it has looked at something, while the application under
    test commits."""
    reader, writer = session.connect(), session.connect()
    assert rows(reader) == []
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    reader.rollback()
    assert rows(reader) == [(1,)]


def test_one_that_only_read_may_end_first(session: Session) -> None:
    reader, writer = session.connect(), session.connect()
    rows(reader)
    writer.execute("INSERT INTO t VALUES (1)")
    reader.commit()
    writer.rollback()
    assert rows(reader) == []


def test_one_that_reads_first_and_writes_later_undoes_its_own_writes_only(session: Session) -> None:
    first, second = session.connect(), session.connect()
    rows(first)
    second.execute("INSERT INTO t VALUES (1)")
    second.commit()
    first.execute("INSERT INTO t VALUES (2)")
    first.rollback()
    assert rows(first) == [(1,)]


def test_a_wider_fixtures_transaction_that_only_read_may_end_inside_a_test(
    session: Session,
) -> None:
    wider = session.connect()
    rows(wider)
    level = Level(session)
    level.enter()
    wider.commit()
    wider.execute("INSERT INTO t VALUES (1)")
    wider.commit()
    level.leave()
    assert rows(wider) == []
