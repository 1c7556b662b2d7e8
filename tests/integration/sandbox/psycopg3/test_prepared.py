"""Statements that psycopg prepares, where several connections and tests share a session."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ...twice import INSERT, Both, table, values

pytestmark = pytest.mark.clone_of(make=table)


def test_prepared_statements_across_rollbacks(both: Both) -> None:
    def program(db: Isolation) -> Any:
        connection = db.connect(prepare_threshold=0)
        for value in range(6):
            for _ in range(3):
                connection.execute("SELECT count(*) FROM t WHERE a < %s", [value])
            connection.execute(INSERT, [value])
            connection.commit() if value % 2 else connection.rollback()
            if value == 3:
                connection.execute("ALTER TABLE t ADD COLUMN c int")
                connection.commit()
                connection.execute("ALTER TABLE t DROP COLUMN c")
                connection.commit()
        return values(connection)

    assert both(program) == [1, 3, 5]


_PREPARED = (
    "SELECT name FROM pg_prepared_statements WHERE NOT from_sql AND statement LIKE '%abs(a)%'"
)


def test_what_psycopg_prepared_in_one_test_is_still_prepared_in_the_next(clone: Clone) -> None:
    """As with a connection that the application keeps; the plans of a suite's statements are made
    once."""
    seen = []
    for way in ("kept", "kept", "closed", "forgotten", "kept"):
        with clone.isolated("rollback") as db:
            connection = db.connect(autocommit=True)
            connection.execute("BEGIN;")
            connection.execute('SAVEPOINT "as peewee writes it";')
            for _ in range(3):
                connection.execute("SELECT abs(a) FROM t WHERE a = %s", [1])
            connection.execute('RELEASE SAVEPOINT "as peewee writes it";')
            connection.execute("COMMIT;")
            seen.append(connection.execute(_PREPARED).fetchall())
            if way == "closed":
                connection.close()
            if way == "forgotten":
                del connection
    assert [len(names) for names in seen] == [0, 1, 1, 1, 1]
    assert len({names[0] for names in seen[1:]}) == 1


def test_what_was_prepared_does_not_outlive_the_objects_of_its_test(clone: Clone) -> None:
    """C20: each test makes a type of the same name anew, which the server knows by another number
    each time."""
    for _ in range(3):
        with clone.isolated("rollback") as db:
            connection = db.connect(prepare_threshold=0)
            connection.execute("CREATE TYPE colour AS ENUM ('red')")
            connection.execute("CREATE TABLE painted (c colour)")
            connection.execute("ALTER TABLE t ADD COLUMN extra int")
            connection.execute("INSERT INTO painted VALUES ('red'::colour)")
            connection.execute("INSERT INTO t (a) VALUES (7)")
            assert connection.execute("SELECT * FROM t").fetchall() == [(7, None, None)]
            assert connection.execute("SELECT * FROM painted").fetchall() == [("red",)]
            connection.commit()
        with clone.isolated("rollback") as db:
            connection = db.connect(prepare_threshold=0)
            assert connection.execute("SELECT * FROM t").fetchall() == []
            assert (
                connection.execute("SELECT 1 FROM pg_type WHERE typname = 'colour'").fetchall()
                == []
            )


def test_in_a_class_too_nothing_prepared_outlives_the_objects_of_a_test(clone: Clone) -> None:
    """C20: here the connection lives on as well."""
    with clone.layer("a class") as layer:
        connection = layer.connect(prepare_threshold=0)
        for _ in range(3):
            with clone.isolated("rollback"):
                connection.execute("ALTER TABLE t ADD COLUMN extra int")
                connection.execute("INSERT INTO t (a) VALUES (7)")
                assert connection.execute("SELECT * FROM t").fetchall() == [(7, None, None)]
                connection.commit()
            with clone.isolated("rollback"):
                assert connection.execute("SELECT * FROM t").fetchall() == []
                connection.commit()


def test_what_a_failed_pipeline_never_prepared_is_not_handed_on(clone: Clone) -> None:
    """psycopg takes a statement for prepared as soon as it is in a pipeline, whether or not the
    server ever came to it."""

    def pipe(connection: psycopg.Connection[Any]) -> None:
        with connection.pipeline():
            connection.execute("SELECT 1/0")
            connection.execute("SELECT abs(a) FROM t WHERE a = %s", [1])

    def fail(db: Isolation) -> None:
        with db.connect(autocommit=True) as connection:
            for _ in range(5):
                connection.execute("SELECT abs(a) FROM t WHERE a = %s", [1])
            with pytest.raises(psycopg.errors.DivisionByZero):
                pipe(connection)

    for _ in range(3):
        with clone.isolated("rollback") as db:
            for _ in range(2):
                fail(db)
                with db.connect(autocommit=True) as later:
                    assert later.execute("SELECT abs(a) FROM t WHERE a = %s", [1]).fetchall() == []


def test_statements_that_nobody_remembers_do_not_pile_up(clone: Clone) -> None:
    for _ in range(150):
        with clone.isolated("rollback") as db:
            connection = db.connect(autocommit=True, prepare_threshold=0)
            connection.execute("SELECT abs(a) FROM t WHERE a = %s", [1])
            connection.execute("CREATE TYPE colour AS ENUM ('red')")
            connection.execute("SELECT abs(a) FROM t WHERE a = %s AND a = 1", [1])
            left = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert left is not None
    assert left[0] < 120
