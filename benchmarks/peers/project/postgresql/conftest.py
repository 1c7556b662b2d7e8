"""pytest-postgresql, as its README says for a server that runs already: the schema is loaded once
into a template, and the client fixture makes a database from it for each test, with a connection.
"""

from __future__ import annotations

import place
import pytest
from handles import Psycopg
from pytest_postgresql import factories

MARKS = []
postgresql_external = factories.postgresql_noproc(
    host=place.HOST,
    port=place.PORT,
    user=place.USER,
    password=place.PASSWORD or None,
    dbname=place.NAME,
    maintenance_dbname=place.MAINTENANCE,
    load=[place.SCHEMA],
)
postgresql = factories.postgresql("postgresql_external")


@pytest.fixture
def handle(postgresql):
    return Psycopg(postgresql, place.url(place.NAME))
