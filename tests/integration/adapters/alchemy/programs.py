"""SQLAlchemy models of the tests, and programs that use them as applications do: each returns what
the application saw.

A program runs sandboxed and for real, and must see the same: rows, results, and errors by class and
SQLSTATE.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Engine, ForeignKey, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

Seen = list[Any]


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    pets: Mapped[list[Pet]] = relationship(back_populates="owner")


class Pet(Base):
    __tablename__ = "pet"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(
        ForeignKey("person.id", deferrable=True, initially="DEFERRED")
    )
    owner: Mapped[Person] = relationship(back_populates="pets")


PEOPLE: Any = Person.__table__


def names(engine: Engine) -> list[str]:
    """Return what a connection of its own sees."""
    with engine.connect() as connection:
        return list(connection.scalars(select(PEOPLE.c.name).order_by(PEOPLE.c.name)))


@contextlib.contextmanager
def noted(seen: Seen) -> Iterator[None]:
    """Note the error that ends the block, as the application would tell it from others."""
    try:
        yield
    except DBAPIError as error:
        seen.append(
            (
                type(error).__name__,
                getattr(error.orig, "sqlstate", None),
                error.connection_invalidated,
            )
        )
    except Exception as error:
        seen.append(type(error).__name__)


def orm(engine: Engine) -> Seen:
    """A Session: flush, commit, rollback, an IntegrityError in the middle, objects before and
    after."""
    seen: Seen = []
    with Session(engine) as session:
        ann = Person(name="ann", pets=[Pet()])
        session.add(ann)
        session.commit()
        seen += [ann.name, len(ann.pets), session.in_transaction()]
        session.add(Person(name="ann"))
        with noted(seen):
            session.commit()
        with noted(seen):
            session.rollback()
            session.add(Person(name="bob"))
            session.flush()
        session.rollback()
        session.add(Person(name="cid"))
        session.commit()
        ann.name = "undone"
        session.flush()
    return [*seen, names(engine)]


def failed_until_rolled_back(engine: Engine) -> Seen:
    """After an error in a transaction nothing works until it is rolled back, on a Connection and on
    a Session."""
    seen: Seen = []
    with engine.connect() as connection:
        connection.execute(insert(PEOPLE).values(name="lost"))
        for statement in ("SELECT 1/0", "SELECT 1", "SELECT 1"):
            with noted(seen):
                connection.execute(text(statement))
        connection.rollback()
        seen.append(connection.scalar(text("SELECT 2")))
    with Session(engine) as session:
        session.add_all([Person(name="x"), Person(name="x")])
        for _ in range(2):
            with noted(seen):
                session.flush()
            with noted(seen):
                session.scalar(select(func.count()).select_from(Person))
        session.rollback()
        seen.append(session.scalar(select(func.count()).select_from(Person)))
    return [*seen, names(engine)]


def core(engine: Engine) -> Seen:
    """engine.begin(), connection.begin(), commit as you go, and a block that raises."""
    seen: Seen = []
    with engine.begin() as connection:
        connection.execute(insert(PEOPLE), [{"name": "a"}, {"name": "b"}])
    with contextlib.suppress(ZeroDivisionError), engine.begin() as connection:
        connection.execute(insert(PEOPLE).values(name="undone"))
        raise ZeroDivisionError
    with engine.connect() as connection:
        connection.execute(insert(PEOPLE).values(name="c"))
        connection.commit()
        connection.execute(insert(PEOPLE).values(name="undone"))
        seen.append(connection.in_transaction())
        connection.rollback()
        seen.append(connection.in_transaction())
        with connection.begin():
            connection.execute(insert(PEOPLE).values(name="d").returning(PEOPLE.c.name))
        connection.execute(insert(PEOPLE).values(name="forgotten"))
    return [*seen, names(engine)]


def nested(engine: Engine) -> Seen:
    """begin_nested() that commits, fails and is rolled back, in Session and Connection, to some
    depth."""
    seen: Seen = []
    with Session(engine) as session, session.begin():
        session.add(Person(name="a"))
        session.flush()
        with noted(seen), session.begin_nested():
            session.add(Person(name="a"))
        with session.begin_nested() as savepoint:
            session.add(Person(name="undone"))
            session.flush()
            savepoint.rollback()
        with session.begin_nested(), contextlib.suppress(ZeroDivisionError):
            session.add(Person(name="b"))
            with session.begin_nested():
                session.add(Person(name="undone"))
                session.flush()
                raise ZeroDivisionError
    with engine.connect() as connection:
        outer = connection.begin()
        first = connection.begin_nested()
        connection.execute(insert(PEOPLE).values(name="c"))
        with noted(seen):
            connection.execute(insert(PEOPLE).values(name="c"))
        with noted(seen):
            connection.execute(text("SELECT 1"))
        first.rollback()
        connection.execute(insert(PEOPLE).values(name="d"))
        outer.commit()
    return [*seen, names(engine)]


def deferred(engine: Engine) -> Seen:
    """Constraints that are checked at the commit."""
    seen: Seen = []
    with noted(seen), Session(engine) as session:
        session.add(Pet(owner_id=4711))
        session.flush()
        session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    return [*seen, names(engine)]


def autocommit(engine: Engine) -> Seen:
    """The execution option, on a connection and on an engine, and back to transactions on the same
    pool."""
    seen: Seen = []
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert(PEOPLE).values(name="a"))
        with noted(seen):
            connection.execute(insert(PEOPLE).values(name="a"))
        connection.execute(insert(PEOPLE).values(name="b"))
        connection.rollback()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(insert(PEOPLE).values(name="c"))
    with engine.connect() as connection:
        connection.execute(insert(PEOPLE).values(name="undone"))
        seen.append(connection.get_isolation_level())
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(Person(name="d"))
        session.flush()
        session.rollback()
    return [*seen, names(engine)]


def sessions_at_once(engine: Engine) -> Seen:
    """Two sessions that live side by side, as a test's own and that of the application under test."""
    seen: Seen = []
    make = sessionmaker(engine)
    with make() as outer:
        seen.append(outer.scalar(select(func.count()).select_from(Person)))
        with make.begin() as inner:
            inner.add(Person(name="a"))
        seen.append(outer.scalar(select(func.count()).select_from(Person)))
        outer.rollback()
        seen.append(outer.scalar(select(func.count()).select_from(Person)))
        with make() as inner:
            inner.add(Person(name="b"))
            inner.commit()
    seen.append(names(engine))
    first, second = make(), make()
    seen += [
        first.scalar(select(func.count()).select_from(Person)),
        second.scalar(select(func.count()).select_from(Person)),
    ]
    first.close()
    second.add(Person(name="c"))
    second.commit()
    second.close()
    return [*seen, names(engine)]


def disposing(engine: Engine) -> Seen:
    """engine.dispose() between statements, with one connection checked out."""
    with engine.connect() as connection:
        connection.execute(insert(PEOPLE).values(name="a"))
        engine.dispose()
        connection.execute(insert(PEOPLE).values(name="b"))
        connection.commit()
    seen: Seen = [names(engine)]
    with Session(engine) as session:
        session.add(Person(name="c"))
        session.commit()
        engine.dispose()
        session.add(Person(name="d"))
        session.commit()
    return [*seen, names(engine)]


def scoped(engine: Engine) -> Seen:
    """A scoped_session as applications keep it in a module, with remove() at the end of each
    request."""
    seen: Seen = []
    db = scoped_session(sessionmaker(engine, expire_on_commit=False))
    for name in ("a", "b", "a"):
        with noted(seen):
            db.add(Person(name=name))
            db.commit()
        db.remove()
    seen.append(db.scalar(select(func.count()).select_from(Person)))
    db.remove()
    return [*seen, names(engine)]


def streaming(engine: Engine) -> Seen:
    """Server-side cursors, in a transaction and where there is none."""
    seen: Seen = []
    with engine.begin() as connection:
        connection.execute(insert(PEOPLE), [{"name": f"n{number:03}"} for number in range(250)])
    with engine.connect() as connection:
        result = connection.execution_options(stream_results=True, max_row_buffer=10).execute(
            select(PEOPLE.c.name).order_by("name")
        )
        seen += [result.fetchone(), len(result.fetchmany(7)), len(result.fetchall())]
    with Session(engine) as session:
        seen.append(
            sum(
                len(part)
                for part in session.scalars(
                    select(Person).execution_options(yield_per=20)
                ).partitions()
            )
        )
        session.delete(session.scalars(select(Person).limit(1)).one())
        session.commit()
    with (
        noted(seen),
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.execution_options(stream_results=True).execute(select(PEOPLE.c.name)).fetchall()
    return [*seen, len(names(engine))]


def raw(engine: Engine) -> Seen:
    """The driver's connection, and transaction control as text."""
    seen: Seen = []
    connection: Any = engine.raw_connection()
    connection.cursor().execute("INSERT INTO person (name) VALUES ('a')")
    connection.commit()
    connection.cursor().execute("INSERT INTO person (name) VALUES ('undone')")
    connection.close()
    with engine.connect() as alchemy:
        driver: Any = alchemy.connection.driver_connection
        with driver.transaction():
            driver.execute("INSERT INTO person (name) VALUES ('b')")
        seen.append(driver.info.transaction_status.name)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as alchemy:
        for statement in (
            "BEGIN",
            "INSERT INTO person (name) VALUES ('undone')",
            "ROLLBACK",
            "INSERT INTO person (name) VALUES ('c')",
        ):
            alchemy.exec_driver_sql(statement)
    return [*seen, names(engine)]


PROGRAMS: list[Callable[[Engine], Seen]] = [
    orm, failed_until_rolled_back, core, nested, deferred, autocommit, sessions_at_once, disposing, scoped, streaming, raw,
]  # fmt: skip
