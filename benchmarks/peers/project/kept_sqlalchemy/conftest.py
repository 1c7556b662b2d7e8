"""No isolation, over SQLAlchemy: one database for the whole run, and a plain Session over the
engine's pool for each test."""

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
def handle(engine):
    with Session(engine) as session:
        yield Sessioned(session, place.url(place.NAME))
