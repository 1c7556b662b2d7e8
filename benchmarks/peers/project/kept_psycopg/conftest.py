"""No isolation, over psycopg: one database for the whole run and one connection, kept; nothing is
undone."""

from __future__ import annotations

import contextlib

import place
import psycopg
import pytest
from handles import Psycopg

MARKS = []


@pytest.fixture(scope="session")
def connection():
    with (
        place.own_database() as name,
        contextlib.closing(psycopg.connect(place.url(name), autocommit=True)) as kept,
    ):
        yield kept


@pytest.fixture
def handle(connection):
    return Psycopg(connection, place.url(place.NAME))
