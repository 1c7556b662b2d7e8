"""peewee as teams use it, inside a rollback and against a real clone: the same code, the same
results, nothing left."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import peewee
import pytest
from playhouse.flask_utils import FlaskDB
from playhouse.pool import PooledPostgresqlDatabase
from playhouse.postgres_ext import PostgresqlExtDatabase, ServerSide

from dbclone.adapters.handles import bound_to
from dbclone.clone.clone import Clone
from dbclone.errors import SandboxLimit


class Person(peewee.Model):  # type: ignore[misc]
    name = peewee.CharField(unique=True)
    boss = peewee.ForeignKeyField("self", null=True)


class Pet(peewee.Model):  # type: ignore[misc]
    owner = peewee.ForeignKeyField(Person)


MODELS = (Pet, Person)

pytestmark = pytest.mark.clone_of(schema=MODELS)


def plain() -> Any:
    return peewee.PostgresqlDatabase(None, prefer_psycopg3=True)


def pooled() -> Any:
    return PooledPostgresqlDatabase(None, prefer_psycopg3=True, max_connections=2)


def extended() -> Any:
    return PostgresqlExtDatabase(None, prefer_psycopg3=True)


def proxy() -> Any:
    found = peewee.DatabaseProxy()
    found.initialize(plain())
    return found


def empty_proxy() -> Any:
    return peewee.DatabaseProxy()


def flask() -> Any:
    from flask import Flask

    return FlaskDB(Flask("x"), plain())


def psycopg2_plain() -> Any:
    return peewee.PostgresqlDatabase(None)


def psycopg2_pooled() -> Any:
    return PooledPostgresqlDatabase(None, max_connections=2)


def psycopg2_extended() -> Any:
    return PostgresqlExtDatabase(None, register_hstore=False)


MAKERS = [
    plain,
    pooled,
    extended,
    proxy,
    empty_proxy,
    flask,
    psycopg2_plain,
    psycopg2_pooled,
    psycopg2_extended,
]


@pytest.fixture(params=["rollback", "truncate"])
def reset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def handle(request: pytest.FixtureRequest, clone: Clone) -> Iterator[Any]:
    """Each kind of handle, bound to the clone; afterwards the clone must be as empty as before."""
    made = request.param()
    with bound_to(made, clone.url):
        clone.handle = made
        yield made
        clone.handle = None
    with clone.connect() as outside:
        assert outside.execute("SELECT count(*) FROM person").fetchone() == (0,)


def database(handle: Any) -> Any:
    return handle.database if isinstance(handle, FlaskDB) else handle


def names() -> list[str]:
    return sorted(person.name for person in Person.select())


def test_every_way_to_hold_a_transaction(handle: Any, clone: Clone, reset: str) -> None:
    db = database(handle)
    with db.bind_ctx(MODELS), clone.isolated(reset, "test"):
        with db.atomic():
            Person.create(name="a")
            with pytest.raises(peewee.IntegrityError), db.atomic():
                Person.create(name="a")
            with db.savepoint() as savepoint:
                Person.create(name="undone")
                savepoint.rollback()
        assert names() == ["a"]
        with pytest.raises(peewee.IntegrityError):
            Person.create(name="a")
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            Person.create(name="b")
            raise ZeroDivisionError
        with db.transaction() as transaction:
            Person.create(name="c")
            transaction.commit()
            Person.create(name="d")
            transaction.rollback()
        with db.manual_commit():
            db.begin()
            Person.create(name="e")
            db.rollback()
            db.begin()
            Person.create(name="f")
            db.commit()
        assert names() == ["a", "c", "f"]


def test_sessions_batches_callbacks_and_iterators(handle: Any, clone: Clone, reset: str) -> None:
    """What runs after a COMMIT runs when production would run it: once, and not after a rollback."""
    db, seen = database(handle), []
    with db.bind_ctx(MODELS), clone.isolated(reset, "test"):
        db.session_start()
        Person.create(name="a")
        db.session_rollback()
        db.session_start()
        Person.create(name="b")
        db.session_commit()
        for name in db.batch_commit(["c", "d", "e"], 2):
            Person.create(name=name)
        if hasattr(db, "after_commit"):
            with db.atomic():
                db.after_commit(lambda: seen.append(len(names())))
                Person.create(name="f")
                assert seen == []
            with contextlib.suppress(ZeroDivisionError), db.atomic():
                db.after_commit(lambda: seen.append(-1))
                raise ZeroDivisionError
            assert seen == [5]
        else:
            Person.create(name="f")
        assert [person.name for person in Person.select().order_by(Person.name).iterator()] == [
            "b",
            "c",
            "d",
            "e",
            "f",
        ]
        with db.atomic():
            query = Person.select().order_by(Person.name)
            rows = ServerSide(query) if isinstance(db, PostgresqlExtDatabase) else query.iterator()
            assert [person.name for person in rows] == ["b", "c", "d", "e", "f"]
        db.commit()
        db.rollback()
        assert len(names()) == 5


def test_a_second_database_takes_part(clone: Clone) -> None:
    """Two handles of one application, one of them lent for the block: each sees what the other has
    committed."""
    first, second = plain(), plain()
    with bound_to(first, clone.url), bound_to(second, clone.url):
        clone.handle = first
        with clone.isolated("rollback", "test") as isolation, isolation.lend(second):
            with first.bind_ctx(MODELS):
                Person.create(name="a")
            with second.bind_ctx(MODELS), second.atomic():
                assert names() == ["a"]
                Person.create(name="b")
            with first.bind_ctx(MODELS):
                assert names() == ["a", "b"]
        with clone.isolated("rollback", "test"), first.bind_ctx(MODELS):
            assert names() == []
        clone.handle = None


def test_peewee_over_asyncpg_is_not_taken_for_another_driver(clone: Clone) -> None:
    """D14: what cannot be isolated by rollback is refused by name, and auto means truncate."""
    pwasyncio = pytest.importorskip("playhouse.pwasyncio")
    handle = pwasyncio.AsyncPostgresqlDatabase(None)
    with bound_to(handle, clone.url):
        clone.handle = handle
        assert clone.choose("auto", "test") == "truncate"
        with (
            pytest.raises(SandboxLimit, match="cannot be isolated by rollback") as caught,
            clone.isolated("rollback", "test"),
        ):
            pass
        assert "asyncpg" in caught.value.detail
        clone.handle = None


def test_closing_and_opening_in_the_middle(handle: Any, clone: Clone, reset: str) -> None:
    """D9: what a request's teardown does."""
    db = database(handle)
    with db.bind_ctx(MODELS), clone.isolated(reset, "test"):
        db.connect(reuse_if_open=True)
        Person.create(name="a")
        db.close()
        assert db.is_closed()
        with db.connection_context():
            Person.create(name="b")
        assert db.is_closed()
        with db:
            Person.create(name="c")
        assert names() == ["a", "b", "c"]
        with pytest.raises(peewee.OperationalError), db.atomic():
            db.close()


def test_another_thread_sees_the_tests_rows(handle: Any, clone: Clone, reset: str) -> None:
    """D8."""
    db = database(handle)
    seen: list[list[str]] = []

    def look() -> None:
        with db.connection_context():
            seen.append(names())
            Person.create(name="b")

    with db.bind_ctx(MODELS), clone.isolated(reset, "test"):
        Person.create(name="a")
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(30)
        assert seen == [["a"]]
        assert names() == ["a", "b"]


def test_a_connection_that_was_open_before_is_open_during_and_after(
    handle: Any, clone: Clone
) -> None:
    db = database(handle)
    db.connect()
    real = db.connection()
    with db.bind_ctx(MODELS), clone.isolated("rollback", "test"):
        assert not db.is_closed()
        assert db.connection() is not real
        Person.create(name="a")
    assert db.connection() is real
    cursor = real.cursor()
    cursor.execute("SELECT count(*) FROM person")
    assert cursor.fetchone() == (0,)
    db.close()


def test_parameters_of_the_connection_stay_and_come_back(clone: Clone) -> None:
    db = peewee.PostgresqlDatabase(
        "elsewhere",
        host="nowhere",
        port=1,
        user="nobody",
        options="-c work_mem=7MB",
        prefer_psycopg3=True,
    )
    with bound_to(db, clone.url):
        with db:
            assert db.execute_sql("SHOW work_mem").fetchone() == ("7MB",)
            assert db.execute_sql("SELECT current_database()").fetchone() == (clone.name,)
        for clone.handle, work_mem in ((db, "7MB"), (None, "4MB")):
            clone.replace("a handle with other parameters", quiet=True)
            with clone.isolated("rollback", "test") as isolation:
                assert isolation.execute("SHOW work_mem").fetchone() == (work_mem,)
    assert (db.database, db.connect_params["host"], db.connect_params["port"]) == (
        "elsewhere",
        "nowhere",
        1,
    )
    assert db.is_closed()
