"""SQLAlchemy, as its documentation says under "Joining a Session into an External Transaction (such
as for test suites)": the Session of each test is bound to a connection with a transaction begun
outside of it, which is rolled back."""

from __future__ import annotations

import place
import pytest
from application import connected
from handles import Sessioned
from sqlalchemy.orm import Session

MARKS = []


@pytest.fixture(scope="session")
def engine():
    with place.own_database() as name, connected(name) as made:
        yield made


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
