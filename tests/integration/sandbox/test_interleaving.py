"""Several connections of an application in one sandbox: what may interleave does as in production,
what cannot is said."""

from __future__ import annotations

import psycopg
import pytest

from dbclone.errors import SandboxLimit
from dbclone.sandbox.session import Session

from .test_sandbox import Count, connection, count, insert

__all__ = ["connection", "count"]


def test_blocks_that_only_read_may_interleave(session: Session, count: Count) -> None:
    first, second, third = session.connect(), session.connect(), session.connect(autocommit=True)
    for each in (first, second):
        each.execute("SELECT * FROM t")
    first.commit()
    insert(third, 1)
    insert(second, 2)
    second.rollback()
    assert count() == 1
    first.execute("SELECT * FROM t")
    insert(third, 3)
    first.rollback()
    assert count() == 2


def test_a_statement_beside_an_open_block_that_has_written_is_refused(
    session: Session, count: Count
) -> None:
    """In production it would not see the rows, or wait for them."""
    first, second = session.connect(), session.connect()
    insert(first, 1)
    for text in ("SELECT * FROM t", "INSERT INTO t VALUES (2)", "BEGIN"):
        with pytest.raises(SandboxLimit, match="another connection has written"):
            second.execute(text)
    first.commit()
    insert(second, 2)
    second.commit()
    assert count() == 2


def test_the_failure_of_one_block_is_not_anothers(session: Session, count: Count) -> None:
    first, second = session.connect(), session.connect()
    insert(first, 1)
    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(first, 1)
    insert(second, 1)
    second.commit()
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        insert(first, 2)
    first.rollback()
    assert count() == 1


def test_savepoints_of_the_same_name_are_each_connections_own(
    session: Session, count: Count
) -> None:
    first, second = session.connect(), session.connect()
    first.execute("SAVEPOINT same")
    second.execute("SELECT 1")
    with pytest.raises(psycopg.errors.InvalidSavepointSpecification):
        second.execute("ROLLBACK TO same")
    second.rollback()
    insert(first, 1)
    first.execute("ROLLBACK TO same")
    first.commit()
    assert count() == 0
