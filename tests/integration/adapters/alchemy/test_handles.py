"""What may be bound besides an Engine, what stays of it, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import weakref
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, cast, create_engine, event, func, insert, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool

from dbclone.adapters import handles
from dbclone.adapters.handles import bound_to, unsupported_reason
from dbclone.clone.clone import Clone
from dbclone.errors import SandboxLimit, SettingsError

from ....developer import SHOP, application_url
from .conftest import Bind, engine
from .programs import PEOPLE, Base, Person, core, names, orm

pytestmark = pytest.mark.clone_of(schema=Base.metadata)

RESETS = pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda found: found.execution_options(logging_token="x"),
        lambda found: sessionmaker(found),
        lambda found: scoped_session(sessionmaker(found)),
        lambda found: Session(found),
    ],
    ids=["options", "sessionmaker", "scoped_session", "Session"],
)
@RESETS
def test_what_leads_to_an_engine_may_be_bound(
    bind: Bind, clone: Clone, wrap: Any, reset: str
) -> None:
    found = engine()
    handle = bind(wrap(found))
    with clone.isolated(reset, "test") as isolation:
        assert isolation.reset == reset
        core(found)
        assert isolation.execute("SELECT count(*) FROM person").fetchone() == (4,)
        if isinstance(handle, (Session, scoped_session)):
            handle.close()


@RESETS
def test_parameters_of_the_connection_stay_and_the_url_comes_back(
    bind: Bind, clone: Clone, reset: str
) -> None:
    found = create_engine(
        "postgresql+psycopg://nobody:secret@nowhere.invalid:1/elsewhere?connect_timeout=7",
        connect_args={"host": "elsewhere.invalid", "options": "-c work_mem=7MB"},
        json_serializer=lambda value: json.dumps({"wrapped": value}),
    )
    before = found.url
    with bound_to(found, clone.url):
        assert found.url.database == clone.name
        assert found.url.query["connect_timeout"] == "7"
        with create_engine(found.url, poolclass=NullPool).connect() as other:
            assert other.scalar(text("SELECT current_database()")) == clone.name
        with found.connect() as connection:
            assert connection.scalar(text("SHOW work_mem")) == "7MB"
        clone.handle = found
        clone.replace("a handle with other parameters", quiet=True)
        with clone.isolated(reset, "test"), found.connect() as connection:
            assert connection.scalar(text("SELECT current_database()")) == clone.name
            assert connection.scalar(text("SHOW work_mem")) == "7MB"
            assert connection.scalar(select(func.jsonb_typeof(cast(1, JSONB)))) == "object"
        clone.handle = None
        clone.replace("a handle with other parameters", quiet=True)
    assert found.url == before
    assert "connect" not in vars(found.dialect)
    with pytest.raises(Exception, match=r"elsewhere.invalid|timeout|resolve"):
        found.connect()


@RESETS
def test_events_of_the_project_happen_and_survive(bind: Bind, clone: Clone, reset: str) -> None:
    found = engine()
    seen: list[str] = []

    def listener(name: str) -> Any:
        return lambda *_: seen.append(name)

    for name in ("connect", "checkout", "checkin", "before_cursor_execute", "commit", "rollback"):
        event.listen(found, name, listener(name))
    bind(found)
    with clone.isolated(reset, "test"):
        late = listener("late")
        event.listen(found, "connect", late)
        with found.begin() as connection:
            connection.execute(insert(PEOPLE).values(name="a"))
        assert {"connect", "checkout", "checkin", "before_cursor_execute", "commit", "late"} <= set(
            seen
        )
        found.dispose()
        later = listener("later")
        event.listen(found, "checkout", later)
    seen.clear()
    with clone.isolated(reset, "test"):
        with found.connect() as connection:
            connection.execute(text("SELECT 1"))
        assert {"connect", "late", "later", "rollback"} <= set(seen)
        event.remove(found, "connect", late)
        event.remove(found, "checkout", later)
    seen.clear()
    with clone.isolated(reset, "test"):
        names(found)
    assert {"late", "later"}.isdisjoint(seen)
    assert {"checkout", "before_cursor_execute", "rollback", "checkin"} <= set(seen)
    assert ("connect" in seen) is (reset != "truncate")


def test_a_listener_may_change_the_arguments_of_the_connection_and_not_open_one_of_its_own(
    bind: Bind, clone: Clone
) -> None:
    found = bind(engine())
    given: list[Any] = []

    @event.listens_for(found, "do_connect")
    def change(dialect: Any, record: Any, arguments: Any, parameters: Any) -> None:
        given.append(parameters["dbname"])
        parameters |= {
            "password": "token",
            "host": "production.invalid",
            "options": "-c work_mem=9MB",
        }

    with clone.isolated("truncate", "test"), found.connect() as connection:
        assert (
            connection.scalar(text("SELECT current_database() || current_setting('work_mem')"))
            == f"{clone.name}9MB"
        )
    with clone.isolated("rollback", "test"):
        orm(found)
    assert given[0] == SHOP
    assert len(given) > 1

    @event.listens_for(found, "do_connect")
    def own(dialect: Any, record: Any, arguments: Any, parameters: Any) -> Any:
        opened.append(psycopg.connect(clone.url))
        return opened[-1]

    found.dispose()
    for reset in ("rollback", "truncate"):
        opened: list[Any] = []
        with (
            clone.isolated(reset, "test"),
            pytest.raises(SettingsError, match="connections of its own"),
        ):
            found.connect()
        assert [connection.closed for connection in opened] == [True]


@RESETS
def test_an_engine_with_a_creator_or_a_pool_of_its_own_is_led_to_the_clone(
    bind: Bind, clone: Clone, reset: str
) -> None:
    def creator() -> Any:
        raise AssertionError("the project's own database must not be asked")

    for arguments in ({"creator": creator}, {"pool": QueuePool(creator, pool_size=1)}):
        found = create_engine("postgresql+psycopg://", **arguments)
        with bound_to(found, clone.url):
            clone.handle = found
            with clone.isolated(reset, "test"):
                assert core(found)[-1] == ["a", "b", "c", "d"]
            clone.handle = None
        with pytest.raises(AssertionError, match="must not be asked"):
            found.connect()


def test_what_was_learned_of_another_database_is_learned_again(clone: Clone) -> None:
    """The number of the type hstore is another one in each database that was not copied."""
    found = engine()
    found.dialect.server_version_info = (9, 0)
    found.dialect._has_native_hstore = True  # type: ignore[attr-defined]
    with bound_to(found, clone.url):
        assert found.dialect.server_version_info >= (14,)
        assert not found.dialect._has_native_hstore  # type: ignore[attr-defined]
        assert found.pool.checkedin() == 0  # type: ignore[attr-defined]


def test_a_leaked_connection_is_closed_when_its_clone_is_replaced(bind: Bind, clone: Clone) -> None:
    found = bind(engine())
    with clone.isolated("clone", "test"):
        leaked = found.connect()
        leaked.execute(insert(PEOPLE).values(name="a"))
        driver: Any = leaked.connection.driver_connection
    assert driver.closed
    assert names(found) == []
    leaked.invalidate()
    leaked.close()


def test_an_engine_is_forgotten_when_the_project_forgets_it(clone: Clone) -> None:
    found = engine()
    with bound_to(found, clone.url):
        names(found)
    reference = weakref.ref(found)
    del found
    gc.collect()
    assert reference() is None


@pytest.mark.skipif(
    importlib.util.find_spec("psycopg2") is None, reason="psycopg2 is not installed"
)
def test_an_engine_over_psycopg2_is_refused_a_rollback_and_works_under_auto(
    bind: Bind, clone: Clone
) -> None:
    found = bind(create_engine(application_url("psycopg2")))
    with (
        pytest.raises(SandboxLimit, match=r"postgresql\+psycopg://"),
        clone.isolated("rollback", "test"),
    ):
        pass
    for _ in range(2):
        with clone.isolated("auto", "test") as isolation:
            assert isolation.reset == "truncate"
            assert core(found)[-1] == ["a", "b", "c", "d"]
            assert isolation.execute("SELECT count(*) FROM person").fetchone() == (4,)


def test_an_asynchronous_engine_sandboxed_and_for_real(bind: Bind, clone: Clone) -> None:
    """With a new event loop for each test, and a fresh clone in between: commits, rollbacks,
    savepoints, errors and two tasks."""
    found = bind(create_async_engine(application_url()))
    make: Any = async_sessionmaker(found)

    async def add(name: str) -> str:
        async with make() as session, session.begin():
            session.add(Person(name=name))
        return name

    async def twice(session: Any) -> None:
        async with session.begin_nested():
            await session.execute(insert(Person).values(id=1000, name="twice"))
            await session.execute(insert(Person).values(id=1000, name="twice"))

    async def work() -> list[Any]:
        seen: list[Any] = []
        async with make() as session:
            session.add(Person(name="a"))
            await session.commit()
            session.add(Person(name="undone"))
            await session.flush()
            await session.rollback()
            async with session.begin():
                with pytest.raises(IntegrityError):
                    await twice(session)
                session.add(Person(name="b"))
            seen += sorted(await session.scalars(select(Person.name)))
        seen += sorted(await asyncio.gather(add("c"), add("d")))
        async with found.connect() as connection:
            seen.append(
                (await connection.execute(select(func.count()).select_from(Person))).scalar()
            )
        return seen

    results = []
    for reset in ("auto", "truncate", "clone", "auto", "rollback"):
        with clone.isolated(reset, "test") as isolation:
            assert isolation.reset == {"auto": "rollback"}.get(reset, reset)
            results.append(asyncio.run(work()))
            assert isolation.execute("SELECT count(*) FROM person").fetchone() == (4,)
            assert found.url.database == clone.name
    assert results == [["a", "b", "c", "d", 4]] * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_engine("sqlite://"), "bind leads to an engine for sqlite"),
        (lambda: Person, "not to an engine"),
    ],
)
def test_what_is_no_engine_for_postgresql_is_refused(clone: Clone, make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message), bound_to(make(), clone.url):
        pass


def test_engines_for_postgresql_are_recognised_whatever_they_are_called() -> None:
    class Own(Engine):
        pass

    assert handles.adapter_of(Own) is handles.adapter_of(engine()) is handles.adapter_of(Person)
    assert unsupported_reason(engine()) == ""
