"""SQLAlchemy as teams use it: the same program sandboxed and for real on a fresh clone, with the
same results, and nothing left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import AssertionPool, NullPool, SingletonThreadPool, StaticPool

from dbclone.clone.clone import Clone
from dbclone.errors import SandboxLimit

from .conftest import Bind, engine
from .programs import PEOPLE, PROGRAMS, Base, Person, Seen, core, names, orm, scoped

pytestmark = pytest.mark.clone_of(schema=Base.metadata)


def run(program: Callable[[Engine], Seen], found: Engine, clone: Clone, reset: str) -> Seen:
    with clone.isolated(reset, "test"):
        return program(found)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a pool disposed of leaves connections behind
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_an_application_sees_the_same_sandboxed_and_for_real(
    bind: Bind, clone: Clone, program: Callable[[Engine], Seen]
) -> None:
    found = bind(engine())
    real = run(program, found, clone, "clone")
    assert real[-1] or program.__name__ in ("failed_until_rolled_back", "deferred")
    for reset in ("rollback", "truncate", "rollback"):
        assert run(program, found, clone, reset) == real, reset


@pytest.mark.parametrize(
    "arguments",
    [
        {"poolclass": NullPool},
        {"poolclass": StaticPool},
        {"poolclass": AssertionPool},
        {"poolclass": SingletonThreadPool},
        {"pool_pre_ping": True, "pool_size": 1},
        {"pool_reset_on_return": None},
        {"pool_recycle": 0, "pool_use_lifo": True},
        {"isolation_level": "AUTOCOMMIT"},
    ],
    ids=str,
)
def test_whatever_the_pool(bind: Bind, clone: Clone, arguments: dict[str, Any]) -> None:
    found = bind(engine(**arguments))
    for program in (scoped,) if "isolation_level" in arguments else (orm, core):
        real = run(program, found, clone, "clone")
        for reset in ("rollback", "truncate", "rollback"):
            assert run(program, found, clone, reset) == real, reset


@pytest.mark.parametrize("reset", ["rollback", "truncate"])
def test_a_session_left_open_by_one_test_is_usable_in_the_next(
    bind: Bind, clone: Clone, reset: str
) -> None:
    """D9: a scoped_session in a module that nobody removes, as in a suite that keeps one
    application context pushed."""
    db = scoped_session(sessionmaker(bind(engine())))
    for _ in range(3):
        with clone.isolated(reset, "test"):
            assert db.scalar(select(func.count()).select_from(Person)) == 0
            db.add(Person(name="a"))
            db.commit()
            assert db.scalar(select(func.count()).select_from(Person)) == 1
    db.remove()


def test_a_session_that_read_something_before_the_test_is_in_the_tests_sandbox(
    bind: Bind, clone: Clone
) -> None:
    found = bind(engine())
    with Session(found) as session:
        assert session.scalar(select(func.count()).select_from(Person)) == 0
        with clone.isolated("rollback", "test") as isolation:
            session.add(Person(name="a"))
            session.commit()
            assert isolation.execute("SELECT name FROM person").fetchall() == [("a",)]
        assert session.scalar(select(func.count()).select_from(Person)) == 0


def test_a_session_with_uncommitted_writes_from_before_the_test_is_refused(
    bind: Bind, clone: Clone
) -> None:
    with Session(bind(engine())) as session:
        session.add(Person(name="a"))
        session.flush()
        with (
            pytest.raises(SandboxLimit, match="without committing"),
            clone.isolated("rollback", "test"),
        ):
            pass
        assert session.scalar(select(Person.name)) == "a"


def test_the_data_of_a_module_is_an_outer_layer(bind: Bind, clone: Clone) -> None:
    make = sessionmaker(bind(engine()))
    reader = make()
    with clone.layer("module"):
        with make.begin() as session:
            session.add(Person(name="module"))
        assert reader.scalars(select(Person.name)).all() == ["module"]
        for _ in range(2):
            with clone.isolated("rollback", "test"):
                with make.begin() as session:
                    session.add(Person(name="test"))
                reader.rollback()
                assert sorted(reader.scalars(select(Person.name))) == ["module", "test"]
        reader.rollback()
        assert reader.scalars(select(Person.name)).all() == ["module"]
    reader.close()


@pytest.mark.parametrize("reset", ["rollback", "truncate"])
def test_threads_see_what_the_test_committed_and_the_test_what_they_did(
    bind: Bind, clone: Clone, reset: str
) -> None:
    """D8."""
    found = bind(engine(pool_size=2))
    seen: list[Any] = []

    def work(number: int) -> None:
        with Session(found) as session:
            seen.append(
                session.scalar(
                    select(func.count()).select_from(Person).where(Person.name == "test")
                )
            )
        with found.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(insert(PEOPLE).values(name=f"thread {number}"))

    with clone.isolated(reset, "test"):
        with Session(found) as session:
            session.add(Person(name="test"))
            session.commit()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert seen == [1] * 4
        assert names(found) == ["test", *(f"thread {number}" for number in range(4))]


def test_two_phase_commit_is_refused(bind: Bind, clone: Clone) -> None:
    found = bind(engine())
    with (
        clone.isolated("rollback", "test"),
        found.connect() as connection,
        pytest.raises(SandboxLimit, match="two-phase"),
    ):
        connection.begin_twophase().prepare()


def test_a_connection_kept_beyond_its_test_fails_rather_than_writing_for_real(
    bind: Bind, clone: Clone
) -> None:
    found = bind(engine())
    with clone.isolated("rollback", "test"):
        kept = found.connect()
        kept.execute(text("SELECT 1"))
    with pytest.raises(Exception, match="closed"):
        kept.execute(insert(PEOPLE).values(name="a"))
    kept.invalidate()
    kept.close()
