"""SQLAlchemy, as its documentation says under "Joining a Session into an External Transaction (such as for test suites)": the
Session of each test is bound to a connection with a transaction begun outside of it, which is rolled back."""

from __future__ import annotations

import contextlib

import place
import pytest
from handles import Handle
from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session

MARKS = []


class Sessioned(Handle):
    """Over a Session."""

    def __init__(self, session, url):
        super().__init__(url)
        self.session = session

    def execute(self, query, parameters=()):
        result = self.session.connection().exec_driver_sql(query, tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []

    @contextlib.contextmanager
    def transaction(self):
        try:
            yield
        except BaseException:
            self.session.rollback()
            raise
        self.session.commit()


@pytest.fixture(scope="session")
def engine():
    with place.own_database() as name:
        parts = place.target(name)
        where = {"username": parts["user"], "password": parts.get("password"), "database": name}
        # A folder is no host of a URL.
        query = {"host": place.HOST, "port": str(place.PORT)}
        made = create_engine(URL.create("postgresql+psycopg", **where, query=query))
        yield made
        made.dispose()


@pytest.fixture
def session(engine):
    connection = engine.connect()
    transaction = connection.begin()
    session = Session(bind=connection, join_transaction_mode="create_savepoint")
    yield session
    session.close()
    transaction.rollback()
    connection.close()


@pytest.fixture
def handle(session):
    return Sessioned(session, place.url(place.NAME))
