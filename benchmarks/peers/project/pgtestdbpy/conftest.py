"""pgtestdbpy, as its README says: a template for the session, and for each test a clone of it, with
a connection."""

from __future__ import annotations

from urllib.parse import quote

import pgtestdbpy
import place
import psycopg
import pytest
from handles import Psycopg

MARKS = []


def migrate(url):
    with psycopg.connect(url) as connection:
        connection.execute(place.SCHEMA.read_bytes())


# It puts these into a URL as they are, so what is a folder (of a unix socket) has to be quoted.
_WHERE = {"host": quote(place.HOST, safe=""), "port": place.PORT}
migrator = pgtestdbpy.Migrator(
    migrate, db_name=place.NAME, user=place.NAME, password=place.NAME, **_WHERE
)
config = pgtestdbpy.Config(
    user=place.USER, password=quote(place.PASSWORD, safe=""), db_name=place.MAINTENANCE, **_WHERE
)


@pytest.fixture(scope="session")
def db():
    with pgtestdbpy.templates(config, migrator):
        yield


@pytest.fixture
def conn(db):
    with pgtestdbpy.clone(config, migrator) as url:
        with psycopg.connect(url) as connection:
            yield connection, url


@pytest.fixture
def handle(conn):
    return Psycopg(*conn)
