"""peewee as teams use it, inside a rollback and against a real clone: the same code, the same results, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import peewee
import pytest
from playhouse.flask_utils import FlaskDB
from playhouse.pool import PooledPostgresqlDatabase
from playhouse.postgres_ext import PostgresqlExtDatabase

from dbclone import adapters
from dbclone.adapters.peewee import bound, with_test_db
from dbclone.clone import Clone
from dbclone.errors import SettingsError
from dbclone.server import Server
from dbclone.settings import Settings
from dbclone.template import Template

from .conftest import Project


class Person(peewee.Model):  # type: ignore[misc]
    name = peewee.CharField(unique=True)
    boss = peewee.ForeignKeyField("self", null=True)


class Pet(peewee.Model):  # type: ignore[misc]
    owner = peewee.ForeignKeyField(Person)


MODELS = (Pet, Person)


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


MAKERS = [plain, pooled, extended, proxy, empty_proxy, flask, psycopg2_plain, psycopg2_pooled, psycopg2_extended]


@pytest.fixture(scope="module")
def clone(server: Server, settings: Settings) -> Iterator[Clone]:
    own = replace(settings, name=f"peewee{uuid.uuid4().hex[:6]}")
    server.settings, before = own, server.settings
    parts, handle = adapters.load(own, MODELS)
    with Template.ensure(server, parts, handle).clone("main") as made:
        yield made
    server.settings = before


@pytest.fixture(params=["rollback", "truncate"])
def reset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def handle(request: pytest.FixtureRequest, clone: Clone) -> Iterator[Any]:
    """Each kind of handle, bound to the clone; afterwards the clone must be as empty as before."""
    made = request.param()
    with bound(made, clone.url):
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


def test_a_connection_that_was_open_before_is_open_during_and_after(handle: Any, clone: Clone) -> None:
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
        "elsewhere", host="nowhere", port=1, user="nobody", options="-c work_mem=7MB", prefer_psycopg3=True
    )
    with bound(db, clone.url):
        with db:
            assert db.execute_sql("SHOW work_mem").fetchone() == ("7MB",)
            assert db.execute_sql("SELECT current_database()").fetchone() == (clone.name,)
        for clone.handle, work_mem in ((db, "7MB"), (None, "4MB")):
            clone.replace("a handle with other parameters", quiet=True)
            with clone.isolated("rollback", "test") as isolation:
                assert isolation.execute("SHOW work_mem").fetchone() == (work_mem,)
    assert (db.database, db.connect_params["host"], db.connect_params["port"]) == ("elsewhere", "nowhere", 1)
    assert db.is_closed()


def decorated(style: str) -> Callable[..., Any]:
    @with_test_db(MODELS)
    def function(one: int, *rest: int, two: int = 2, **more: int) -> Any:
        assert names() == []
        Person.create(name="x")
        return one, rest, two, more, names()

    @with_test_db(MODELS)
    async def coroutine(one: int, *rest: int, two: int = 2, **more: int) -> Any:
        Person.create(name="x")
        await asyncio.sleep(0)
        return one, rest, two, more, names()

    class Holder:
        @with_test_db(MODELS)
        def method(self, one: int, *rest: int, two: int = 2, **more: int) -> Any:
            Person.create(name="x")
            return one, rest, two, more, names()

    if style == "coroutine":
        return lambda *a, **k: asyncio.run(coroutine(*a, **k))
    return Holder().method if style == "method" else function


@pytest.mark.parametrize("style", ["function", "method", "coroutine"])
@pytest.mark.parametrize("with_handle", [True, False])
def test_the_decorator_hands_everything_through_and_leaves_an_empty_database(
    clone: Clone, reset: str, style: str, with_handle: bool
) -> None:
    """The models belong to another database altogether, or to none."""
    db = plain()
    with bound(db, clone.url):
        clone.handle = db if with_handle else None
        for _ in range(2):
            with clone.isolated(reset, "test") as isolation:
                assert decorated(style)(1, 5, 6, two=3, four=4, dbclone=isolation) == (1, (5, 6), 3, {"four": 4}, ["x"])
        clone.handle = None


def test_the_decorator_without_a_clone_says_so() -> None:
    with pytest.raises(SettingsError, match="there is no clone to bind to"):
        decorated("function")(1)


def test_the_decorator_under_pytest(project: Project) -> None:
    """With fixtures, parameters, classes, and a dbclone fixture that the test may or may not ask for."""
    project.write(
        test_a="""
        import pytest
        from dbclone.adapters.peewee import with_test_db
        from models import Post, User
        @pytest.fixture
        def word():
            return "word"
        @with_test_db((User, Post))
        def test_function(word):
            User.create(name=word)
            assert User.select().count() == 1
        @pytest.mark.parametrize("i", [1, 2])
        @with_test_db([User])
        def test_parametrised(i, word, dbclone):
            User.create(name=word)
            assert dbclone.execute('SELECT count(*) FROM "user"').fetchone() == (1,)
        class TestClass:
            @with_test_db((User,))
            def test_method(self, word):
                User.create(name=word)
                assert User.select().count() == 1
        """
    )
    for workers in ("0", "2"):
        done = project.pytest("-q", "-n", workers)
        assert "4 passed" in done.stdout, done.stdout + done.stderr
