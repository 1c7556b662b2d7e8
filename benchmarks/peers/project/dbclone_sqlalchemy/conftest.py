"""dbclone over SQLAlchemy, as its README says: the schema and the engine are named in
pyproject.toml, and tests ask for the `dbclone` fixture. The application's Session knows nothing of
it."""

from __future__ import annotations

import pytest
from application import engine
from handles import Sessioned
from sqlalchemy.orm import Session

MARKS = []


@pytest.fixture
def handle(dbclone):
    with Session(engine) as session:
        yield Sessioned(session, dbclone.url)
