"""No isolation: one database for the whole run and one connection, kept; nothing is undone."""

from __future__ import annotations

import place
import pytest
from application import db
from handles import Peewee

MARKS = []


@pytest.fixture(scope="session")
def database():
    with place.own_database() as name:
        parameters = place.target(name)
        db.init(parameters.pop("dbname"), **parameters)
        db.connect()
        yield place.url(name)
        db.close()


@pytest.fixture
def handle(database):
    return Peewee(db, database)
