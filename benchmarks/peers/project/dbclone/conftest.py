"""dbclone, as its README says: the schema and the handle are named in pyproject.toml, and tests ask
for the `dbclone` fixture."""

from __future__ import annotations

import pytest
from application import db
from handles import Peewee

MARKS = []


@pytest.fixture
def handle(dbclone):
    return Peewee(db, dbclone.url)
