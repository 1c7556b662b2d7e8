"""Transactions of several connections at a time: as in production where savepoints can do it, and refused where they cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from dbclone import SandboxLimit
from dbclone.clone import Clone
from dbclone.isolation import Isolation
from dbclone.server import Server
from dbclone.settings import Settings

from .twice import refused, run, table, twice

INSERT = "INSERT INTO t VALUES (%s)"
Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def clone(server: Server, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    with table(server, settings, tmp_path_factory.mktemp("interleaving")) as made:
        yield made


@pytest.fixture
def both(clone: Clone) -> Callable[[Callable[[Isolation], Any]], Any]:
    return lambda program: twice(clone, program)


def values(connection: Connection) -> list[int]:
    return [a for (a,) in connection.execute("SELECT a FROM t ORDER BY a").fetchall()]


def test_a_transaction_and_what_others_do_beside_it(both: Callable[..., Any]) -> None:
    """They write, fail and commit in other threads, and so does it; nobody's failure touches another."""

    def program(db: Isolation) -> Any:
        outer, inner, alone = db.connect(), db.connect(), db.connect(autocommit=True)
        seen: list[Any] = []
        outer.execute(INSERT, [1])
        run(lambda: alone.execute(INSERT, [2]))
        run(lambda: inner.execute(INSERT, [3]))
        run(inner.commit)
        seen.append(run(lambda: refused(lambda: alone.execute(INSERT, [2]))))
        seen += [c.info.transaction_status for c in (outer, inner, alone)]
        outer.execute(INSERT, [4])
        run(lambda: alone.execute(INSERT, [5]))
        seen.append(run(lambda: refused(lambda: inner.execute(INSERT, [3]))))
        seen += [c.info.transaction_status for c in (outer, inner, alone)]
        run(lambda: alone.execute(INSERT, [6]))
        seen += [run(lambda: refused(lambda: inner.execute("SELECT 1"))), inner.info.transaction_status]
        run(inner.commit)
        seen.append(run(lambda: refused(lambda: alone.execute("SELECT 1 / 0"))))
        outer.commit()
        return [*seen, values(alone), [c.info.transaction_status for c in (outer, inner, alone)]]

    assert both(program)[-2] == [1, 2, 3, 4, 5, 6]


def test_who_fails_in_the_middle_of_anothers_work_fails_alone(both: Callable[..., Any]) -> None:
    """The one that began first fails while the other is in its block: the other's block must go on unharmed."""

    def program(db: Isolation) -> Any:
        first, second, alone = db.connect(), db.connect(), db.connect(autocommit=True)
        seen: list[Any] = []
        first.execute(INSERT, [5])
        run(lambda: second.execute(INSERT, [1]))
        seen.append(refused(lambda: first.execute("SELECT 1 / 0")))
        run(lambda: second.execute(INSERT, [2]))
        seen += [c.info.transaction_status for c in (first, second, alone)]
        seen.append(refused(lambda: first.execute("SELECT 1")))
        seen.append(second.execute("SELECT a FROM t WHERE a < 5 ORDER BY a").fetchall())
        run(second.rollback)
        seen += [refused(lambda: first.execute("BEGIN")), first.info.transaction_status]
        first.rollback()
        return [*seen, values(alone), first.info.transaction_status]

    result = both(program)
    assert (result[1], result[2], result[-2]) == (TransactionStatus.INERROR, TransactionStatus.INTRANS, [])


def test_savepoints_of_a_failed_block_outlive_what_others_do(both: Callable[..., Any]) -> None:
    def program(db: Isolation) -> Any:
        block, alone = db.connect(), db.connect(autocommit=True)
        block.execute(INSERT, [1])
        block.execute("SAVEPOINT a")
        seen: list[Any] = [refused(lambda: block.execute(INSERT, [1]))]
        run(lambda: alone.execute("SELECT count(*) FROM pg_class"))
        seen += [block.info.transaction_status]
        seen += [refused(lambda: block.execute(statement)) for statement in ("SELECT 1", "SAVEPOINT b")]  # noqa: B023
        block.execute("ROLLBACK TO a")
        block.execute(INSERT, [2])
        block.commit()
        return [*seen, values(alone)]

    assert both(program)[-1] == [1, 2]


def interleaved(db: Isolation) -> tuple[Connection, Connection]:
    first, second = db.connect(), db.connect()
    first.execute(INSERT, [1])
    run(lambda: second.execute(INSERT, [2]))
    return first, second


def test_a_commit_before_the_one_that_began_later_is_refused(clone: Clone) -> None:
    with clone.isolated("rollback", "test") as db:
        first, second = interleaved(db)
        with pytest.raises(SandboxLimit, match="interleave") as caught:
            first.commit()
        assert "began later is still open" in caught.value.detail
        assert 'reset="truncate"' in caught.value.hint
        run(second.commit)
        first.commit()
        assert values(db.connection) == [1, 2]


def undone_by_block(first: Connection, second: Connection) -> None:
    run(second.commit)
    first.rollback()


def undone_while_open(first: Connection, second: Connection) -> None:
    first.rollback()


def undone_by_a_savepoint(first: Connection, second: Connection) -> None:
    run(second.commit)
    first.execute("SAVEPOINT a")
    run(lambda: second.execute(INSERT, [3]))
    run(second.commit)
    first.execute("ROLLBACK TO a")


def undone_by_closing(first: Connection, second: Connection) -> None:
    run(second.commit)
    first.close()


def undone_by_the_later_one(first: Connection, second: Connection) -> None:
    first.execute(INSERT, [3])
    run(second.rollback)


def undone_by_a_failure(first: Connection, second: Connection) -> None:
    run(second.commit)
    with contextlib.suppress(psycopg.Error):
        first.execute(INSERT, [1])
    run(lambda: second.execute("SELECT 1"))
    first.rollback()


@pytest.mark.parametrize(
    "undo",
    [undone_by_block, undone_while_open, undone_by_a_savepoint, undone_by_closing, undone_by_the_later_one, undone_by_a_failure],
)
def test_what_would_undo_anothers_work_is_refused_and_nobody_reads_on(
    clone: Clone, undo: Callable[[Connection, Connection], None]
) -> None:
    """Also where an application's own error handling has swallowed the error; the next test is as if nothing had happened."""
    with clone.isolated("rollback", "test") as db:
        first, second = interleaved(db)
        with pytest.raises(SandboxLimit, match="interleave"):
            undo(first, second)
        for connection in (second, db.connection):
            with pytest.raises(SandboxLimit, match="interleave"):
                connection.execute("SELECT 1")
    with clone.isolated("rollback", "next") as db:
        db.execute(INSERT, [1])
        assert values(db.connection) == [1]


def test_transactions_that_only_read_end_in_any_order(both: Callable[..., Any]) -> None:
    """Every `with pool.connection()` is a transaction, and most of them only read."""

    def program(db: Isolation) -> Any:
        reader, writer, third = db.connect(), db.connect(), db.connect()
        seen: list[Any] = []
        for first, second in ((reader, writer), (writer, reader)):
            for end in (Connection.commit, Connection.rollback):
                for other in (Connection.commit, Connection.rollback):
                    first.execute("SELECT count(*) FROM t")
                    run(lambda: second.execute("SELECT count(*) FROM t"))  # noqa: B023
                    writer.execute("INSERT INTO t SELECT coalesce(max(a), 0) + 1 FROM t")
                    run(lambda: third.execute("SELECT 1"))
                    run(lambda: end(first))  # noqa: B023
                    seen.append([c.info.transaction_status for c in (first, second, third)])
                    run(lambda: second.execute("SELECT 1"))  # noqa: B023
                    other(second)
                    third.rollback()
                    seen.append(values(db.connection))
        return seen

    assert both(program)[-1] == [1, 2, 3, 4]


def test_the_one_that_has_written_ends_before_one_that_has_not_yet(both: Callable[..., Any]) -> None:
    def program(db: Isolation) -> Any:
        for end in (Connection.rollback, Connection.commit):
            first, second = db.connect(), db.connect()
            first.execute(INSERT, [1])
            second.execute("SELECT 1")
            second.execute("SAVEPOINT a")
            run(lambda: end(first))  # noqa: B023
            second.execute(INSERT, [2])
            second.execute("ROLLBACK TO a")
            second.execute(INSERT, [3])
            seen: list[Any] = [c.info.transaction_status for c in (first, second)]
            second.commit()
            seen.append(values(db.connection))
            db.execute("DELETE FROM t WHERE a = 3")
        return seen

    assert both(program)[-1] == [1, 3]


def test_a_statement_of_which_nothing_is_known_counts_as_a_write(clone: Clone) -> None:
    with clone.isolated("rollback", "test") as db:
        db.execute("CREATE FUNCTION add() RETURNS void LANGUAGE sql AS 'INSERT INTO t VALUES (9)'")
        block = db.connect()
        for cursor, statement in (
            (block.cursor(), "SELECT add()"),
            (block.cursor("named"), "SELECT add()"),
            (psycopg.ClientCursor(block), "INSERT INTO t VALUES (9)"),
        ):
            with cursor:
                cursor.execute(statement)
                assert cursor.rowcount or cursor.fetchall()
                block.rollback()
            assert values(db.connection) == []


def test_reading_in_the_middle_of_anothers_transaction_refuses_nothing(both: Callable[..., Any]) -> None:
    def program(db: Isolation) -> Any:
        first = db.connect()
        first.execute("SELECT 1")
        seen = [run(lambda: db.execute(query).fetchall()) for query in ("SELECT a FROM t", "SHOW port", "TABLE t")]  # noqa: B023
        run(lambda: db.execute(psycopg.sql.SQL("SELECT {}").format(1)))
        first.execute(INSERT, [1])
        first.rollback()
        return len(seen), values(db.connection)

    assert both(program) == (3, [])
