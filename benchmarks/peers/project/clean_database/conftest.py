"""pytest-clean-database, as its README says: `clean_db_urls` requires the fixture that makes the
test database. The application keeps its connection."""

from __future__ import annotations

import contextlib

import place
import psycopg
import pytest
from handles import Psycopg

MARKS = []


@pytest.fixture(scope="session")
def test_db():
    with place.own_database() as name:
        yield name


@pytest.fixture(scope="session")
def clean_db_urls(test_db):
    return [place.url(test_db)]


@pytest.fixture(scope="session")
def connection(clean_db_urls):
    with contextlib.closing(psycopg.connect(clean_db_urls[0], autocommit=True)) as kept:
        yield kept


@pytest.fixture
def handle(connection, clean_db_urls):
    return Psycopg(connection, clean_db_urls[0])
