"""The sandbox: what an application does to transactions, it may do here, and all of it is undone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from dbclone.errors import SandboxLimit
from dbclone.reset.rollback import Level
from dbclone.sandbox.session import SandboxConnection, Session

Count = Callable[[], int]
IDLE, INTRANS, INERROR = (
    TransactionStatus.IDLE,
    TransactionStatus.INTRANS,
    TransactionStatus.INERROR,
)


@pytest.fixture
def connection(session: Session) -> SandboxConnection:
    return session.connect(autocommit=True)


@pytest.fixture
def count(connection: SandboxConnection) -> Count:
    def ask() -> int:
        row = connection.execute("SELECT count(*) FROM t").fetchone()
        assert row is not None
        return int(row[0])

    return ask


def insert(connection: psycopg.Connection[Any], *values: int) -> None:
    for value in values:
        connection.execute("INSERT INTO t VALUES (%s)", [value])


def test_a_failing_statement_outside_a_block_does_not_poison_what_follows(
    connection: SandboxConnection, count: Count
) -> None:
    """D3."""
    insert(connection, 1)
    for _ in range(3):
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(connection, 1)
        assert connection.info.transaction_status == IDLE
    assert count() == 1


def test_inside_a_block_it_does_until_rolled_back(
    connection: SandboxConnection, count: Count
) -> None:
    connection.execute("BEGIN")
    insert(connection, 1)
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1/0")
    assert connection.info.transaction_status == INERROR
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        count()
    connection.execute("ROLLBACK")
    assert connection.info.transaction_status == IDLE
    assert count() == 0


def test_commit_of_a_failed_block_rolls_back_as_the_server_does(
    connection: SandboxConnection, count: Count
) -> None:
    connection.execute("BEGIN")
    insert(connection, 1)
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1/0")
    connection.execute("COMMIT")
    assert count() == 0


def test_commit_keeps_and_rollback_undoes_the_block_alone(session: Session, count: Count) -> None:
    other = session.connect()
    insert(other, 1)
    assert other.info.transaction_status == INTRANS
    other.commit()
    insert(other, 2)
    other.rollback()
    assert other.info.transaction_status == IDLE
    assert count() == 1


def test_savepoints_of_the_application_nest_to_any_depth(
    connection: SandboxConnection, count: Count
) -> None:
    connection.execute("BEGIN")
    for depth in range(8):
        connection.execute(f"SAVEPOINT s{depth}")
        insert(connection, depth)
    connection.execute("ROLLBACK TO SAVEPOINT s5")
    connection.execute("RELEASE s2")
    with pytest.raises(psycopg.errors.InvalidSavepointSpecification):
        connection.execute("ROLLBACK TO s3")
    connection.execute("ROLLBACK TO s1")
    connection.execute("COMMIT")
    assert count() == 1


def test_what_production_refuses_outside_a_block_is_refused(connection: SandboxConnection) -> None:
    for statement in ("SAVEPOINT a", "RELEASE a", "ROLLBACK TO a"):
        with pytest.raises(psycopg.errors.NoActiveSqlTransaction):
            connection.execute(statement)


def test_what_production_only_warns_of_does_nothing(
    connection: SandboxConnection, count: Count
) -> None:
    assert connection.execute("COMMIT").statusmessage == "COMMIT"
    assert connection.execute("ROLLBACK").statusmessage == "ROLLBACK"
    connection.execute("BEGIN")
    connection.execute("BEGIN")
    insert(connection, 1)
    connection.commit()
    assert count() == 1


def test_several_statements_in_one_string_may_control(
    connection: SandboxConnection, count: Count
) -> None:
    """D2: COMMIT; BEGIN in SQL text does not lose the boundary."""
    connection.execute(
        "BEGIN; INSERT INTO t VALUES (1); COMMIT; BEGIN; INSERT INTO t VALUES (2); ROLLBACK;"
        " INSERT INTO t VALUES (3)"
    )
    assert count() == 2
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("BEGIN; INSERT INTO t VALUES (4); COMMIT; INSERT INTO t VALUES (4)")
    assert count() == 3
    connection.execute("BEGIN")
    insert(connection, 5)
    connection.execute("ROLLBACK AND CHAIN")
    assert connection.info.transaction_status == INTRANS
    insert(connection, 6)
    connection.execute("COMMIT")
    assert count() == 4


def test_psycopgs_transaction_blocks(connection: SandboxConnection, count: Count) -> None:
    with connection.transaction():
        insert(connection, 1)
        with contextlib.suppress(ZeroDivisionError), connection.transaction("named"):
            insert(connection, 2)
            raise ZeroDivisionError
        with connection.transaction(force_rollback=True):
            insert(connection, 3)
        with connection.transaction() as inner:
            insert(connection, 4)
            raise psycopg.Rollback(inner)
        with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
            connection.commit()
    assert count() == 1


def test_closing_rolls_an_open_block_back_and_keeps_the_session(
    session: Session, count: Count
) -> None:
    """D9."""
    first = session.connect()
    insert(first, 1)
    first.commit()
    insert(first, 2)
    first.close()
    assert first.closed
    with pytest.raises(psycopg.OperationalError, match="closed"):
        first.execute("SELECT 1")
    assert count() == 1
    with session.connect() as again:
        insert(again, 3)
    assert again.closed
    assert count() == 2


def test_every_way_to_send_a_statement(connection: SandboxConnection, count: Count) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
        with pytest.raises(psycopg.errors.UniqueViolation):
            cursor.executemany("INSERT INTO t VALUES (%s)", [(3,), (1,)])
        with cursor.copy("COPY t FROM STDIN") as copy:
            copy.write_row([4])
        for number in range(8):
            cursor.execute("SELECT %s::int", [number], prepare=True)
        assert list(cursor.stream("SELECT a FROM t ORDER BY a")) == [(1,), (2,), (4,)]
    psycopg.ClientCursor(connection).execute("INSERT INTO t VALUES (%s)", [5])
    with connection.transaction(), connection.cursor("named") as named:
        assert len(named.execute("SELECT * FROM t").fetchall()) == 4
    with connection.pipeline():
        insert(connection, 6, 7)
    assert count() == 6


def test_a_read_only_block_is_one(connection: SandboxConnection, count: Count) -> None:
    connection.execute("BEGIN READ ONLY")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        insert(connection, 1)
    connection.execute("ROLLBACK")
    insert(connection, 1)
    assert count() == 1


def test_two_phase_commit_is_refused(connection: SandboxConnection) -> None:
    with pytest.raises(SandboxLimit, match="two-phase"):
        connection.execute("PREPARE TRANSACTION 'x'")
    with pytest.raises(SandboxLimit, match="two-phase"):
        connection.tpc_begin("x")


def test_reserved_savepoint_names_are_refused(connection: SandboxConnection) -> None:
    connection.execute("BEGIN")
    with pytest.raises(SandboxLimit, match="reserved"):
        connection.execute("ROLLBACK TO dbclone_level_0")


def test_another_thread_sees_what_the_test_wrote(
    session: Session, connection: SandboxConnection
) -> None:
    """D8."""
    insert(connection, 1)
    seen: list[Any] = []

    def look() -> None:
        with session.connect() as other:
            seen.append(other.execute("SELECT count(*) FROM t").fetchone())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(30)
    assert seen == [(1,)]


def test_levels_undo_what_came_after_them_only(
    session: Session, connection: SandboxConnection, count: Count
) -> None:
    insert(connection, 1)
    outer, inner = Level(session), Level(session)
    outer.enter()
    insert(connection, 2)
    inner.enter()
    insert(connection, 3)
    connection.execute("BEGIN")
    inner.leave()
    assert connection.info.transaction_status == IDLE
    assert count() == 2
    outer.leave()
    assert count() == 1
    inner.leave()
    assert count() == 1


def test_a_connection_kept_for_later_fails_rather_than_writing_for_real(session: Session) -> None:
    kept = session.connect()
    session.disconnect()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        insert(kept, 1)


@pytest.mark.parametrize("comment", ["-- name: q\n", "/* traced */ ", "--\n/* a /* b */ */\t"])
def test_a_leading_comment_changes_no_outcome(session: Session, count: Count, comment: str) -> None:
    """As sqlc, aiosql and tracing put them: each kind of statement that the sandbox treats in a way
    of its own."""

    def alone(text: str) -> str:
        with contextlib.closing(session.connect(autocommit=True)) as own:
            try:
                return own.execute(text.encode()).statusmessage or ""
            except (psycopg.Error, SandboxLimit) as error:
                return type(error).__name__

    def late() -> str:
        with contextlib.closing(session.connect()) as own:
            own.execute(f"{comment}SELECT count(*) FROM t")  # noqa: S608
            try:
                return (
                    own.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").statusmessage or ""
                )
            except psycopg.Error as error:
                return type(error).__name__

    assert alone(f"{comment}LOCK TABLE t") == "NoActiveSqlTransaction"
    assert alone(f"{comment}DECLARE c CURSOR FOR SELECT 1") == "NoActiveSqlTransaction"
    assert alone(f"{comment}LISTEN news") == alone(f"{comment}VACUUM t") == "SandboxLimit"
    assert alone(f"{comment}START TRANSACTION") == "START TRANSACTION"
    assert late() == "ActiveSqlTransaction"
    with contextlib.closing(session.connect()) as one, contextlib.closing(session.connect()) as two:
        # Two that only read may have blocks of their own at the same time.
        text = f"{comment}SELECT count(*) FROM t"  # noqa: S608
        reads = [each.execute(text).fetchone() for each in (one, two)]
        assert reads == [(count(),)] * 2
