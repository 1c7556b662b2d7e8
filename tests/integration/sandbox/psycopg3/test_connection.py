"""What psycopg offers on one connection, inside a rollback and for real: the same results, rows and
errors."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from dbclone import SandboxLimit
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ...twice import INSERT, Both, refused, table, values

pytestmark = pytest.mark.clone_of(make=table)

SERIES = "SELECT generate_series(1, 5)"


@pytest.mark.parametrize("withhold", [False, True])
@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_server_side_cursors_last_as_long_as_in_production(
    both: Both, withhold: bool, autocommit: bool, end: str
) -> None:
    def program(db: Isolation) -> Any:
        connection = db.connect(autocommit=autocommit)
        connection.execute(INSERT, [1])
        seen: list[Any] = []
        for _ in range(2):  # the name is free again afterwards
            cursor = connection.cursor("c", withhold=withhold)
            try:
                cursor.execute(SERIES)
                seen += [cursor.fetchone(), cursor.fetchmany(2), connection.info.transaction_status]
                getattr(connection, end)()
                seen.append(cursor.fetchone())
            except psycopg.Error as error:
                seen.append(error.sqlstate)
                connection.rollback()
            seen.append(connection.info.transaction_status)
            try:
                cursor.close()
            except psycopg.Error as error:
                seen.append(error.sqlstate)
                psycopg.Cursor.close(cursor)
            with contextlib.suppress(psycopg.Error):
                connection.execute("CLOSE c")
            connection.rollback()
        return [*seen, values(connection)]

    both(program)


def test_server_side_cursors_inside_savepoints(both: Both) -> None:
    def program(db: Isolation) -> Any:
        connection = db.connect(autocommit=True)
        with connection.transaction(), connection.cursor("c", scrollable=True) as cursor:
            cursor.execute(SERIES)
            with contextlib.suppress(ZeroDivisionError), connection.transaction():
                seen = [cursor.fetchone()]
                raise ZeroDivisionError
            with connection.transaction(), connection.cursor("d") as inner:
                seen += inner.execute(SERIES).fetchall()
            cursor.scroll(-1)
            return [*seen, cursor.fetchall()]

    both(program)


def test_switching_autocommit(both: Both) -> None:
    def program(db: Isolation) -> Any:
        connection = db.connect()
        seen: list[Any] = []
        for value in range(4):
            connection.execute(INSERT, [value])
            with pytest.raises(
                psycopg.ProgrammingError, match="can't change 'autocommit' now"
            ) as caught:
                connection.autocommit = True
            seen.append(str(caught.value))
            connection.rollback() if value % 2 else connection.commit()
            connection.autocommit = True
            seen += [
                refused(lambda: connection.execute(INSERT, [0])),
                connection.info.transaction_status,
            ]
            connection.execute(INSERT, [value + 10])
            connection.autocommit = False
        with connection.transaction(), pytest.raises(psycopg.ProgrammingError) as caught:
            connection.read_only = True
        return [*seen, str(caught.value), values(connection)]

    assert both(program)[-1] == [0, 2, 10, 11, 12, 13]


def test_pipelines(both: Both) -> None:
    def program(db: Isolation) -> Any:
        connection = db.connect(autocommit=True)
        with connection.pipeline(), connection.transaction():
            cursors = [
                connection.execute("INSERT INTO t VALUES (%s) RETURNING a", [value])
                for value in (1, 2)
            ]
            with connection.transaction():
                connection.execute(INSERT, [3])
        seen: list[Any] = [cursor.fetchone() for cursor in cursors]

        def fail() -> None:
            with connection.pipeline(), connection.transaction():
                connection.execute(INSERT, [4])
                connection.execute(INSERT, [1])

        seen.append(refused(fail))
        seen += [
            connection.info.transaction_status,
            connection.info.pipeline_status,
            values(connection),
        ]
        block = db.connect()
        with block.pipeline() as pipeline:
            block.execute(INSERT, [5])
            pipeline.sync()
            block.commit()
            block.execute(INSERT, [6])
            block.rollback()
        return [*seen, values(connection)]

    assert both(program)[-1] == [1, 2, 3, 5]


def test_copy_that_fails_or_is_broken_off(both: Both) -> None:
    def copy(
        connection: psycopg.Connection[Any], *rows: int, error: type[Exception] | None = None
    ) -> None:
        with connection.cursor().copy("COPY t (a) FROM STDIN") as target:
            for row in rows:
                target.write_row([row])
            if error:
                raise error

    def program(db: Isolation) -> Any:
        alone, block = db.connect(autocommit=True), db.connect()
        copy(alone, 1, 2)
        seen = [refused(lambda: copy(alone, 3, 1)), alone.info.transaction_status]
        with pytest.raises(ZeroDivisionError):
            copy(alone, 4, error=ZeroDivisionError)
        copy(block, 5)
        seen += [
            refused(lambda: copy(block, 5)),
            block.info.transaction_status,
            refused(lambda: block.execute("SELECT 1")),
        ]
        block.rollback()
        with block.cursor().copy("COPY (SELECT a FROM t ORDER BY a) TO STDOUT") as source:
            seen.append(list(source.rows()))
        block.commit()
        return [*seen, values(alone)]

    assert both(program)[-1] == [1, 2]


def test_two_phase_commit_is_refused_however_it_is_asked_for(clone: Clone) -> None:
    with clone.isolated("rollback", "test") as db:
        connection = db.connect()
        for ask in (
            lambda: connection.tpc_begin("x"),
            lambda: connection.xid(1, "a", "b"),
            lambda: connection.tpc_recover(),
            lambda: connection.execute("PREPARE TRANSACTION 'x'"),
            lambda: connection.execute("COMMIT PREPARED 'x'"),
        ):
            with pytest.raises(SandboxLimit, match="two-phase") as caught:
                ask()
            assert 'reset="truncate"' in caught.value.hint
            connection.rollback()


def test_what_the_connection_tells_of_itself(both: Both) -> None:
    def program(db: Isolation) -> Any:
        with db.connect(
            autocommit=True, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.RawCursor
        ) as connection:
            row = connection.execute("SELECT $1::int AS n", [1]).fetchone()
            told = [
                row,
                connection.autocommit,
                connection.closed,
                connection.broken,
                type(connection.cursor()).__name__,
            ]
        status = connection.pgconn.transaction_status
        return (
            told,
            connection.closed,
            connection.broken,
            connection.info.transaction_status,
            status,
        )

    assert both(program)[1:3] == (True, False)


DECLARED = 'DECLARE "a ""b" CURSOR FOR SELECT generate_series(1, 3); Declare Other CURSOR WITH HOLD FOR SELECT 1'


@pytest.mark.parametrize(
    "texts",
    [
        DECLARED.split("; "),
        [DECLARED],
        [f"{DECLARED}; COMMIT; {DECLARED.replace('Other', 'more')}"],
    ],
)
@pytest.mark.parametrize("autocommit", [False, True])
def test_cursors_declared_by_sql_last_as_long_as_in_production(
    both: Both, texts: list[str], autocommit: bool
) -> None:
    def program(db: Isolation) -> Any:
        connection, seen = db.connect(autocommit=autocommit), []
        for text in [
            *texts,
            'FETCH "a ""b"',
            "FETCH other",
            "COMMIT",
            'FETCH "a ""b"',
            "ROLLBACK",
            "FETCH other",
            "COMMIT",
            *texts,
        ]:
            try:
                seen.append(connection.execute(text.encode()).statusmessage)
            except psycopg.Error as error:
                seen.append(str(error.sqlstate))
        return seen

    assert both(program)
