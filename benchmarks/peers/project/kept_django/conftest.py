"""No isolation, over Django: one database for the whole run, instead of Django's test database, and
nothing is undone."""

from __future__ import annotations

import place
import pytest
from django.db import connection, transaction
from handles import Django

MARKS = []


@pytest.fixture(scope="session")
def django_db_setup(django_db_blocker):
    with place.own_database(), django_db_blocker.unblock():
        yield
        connection.close()


@pytest.fixture
def handle(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        yield Django(connection, transaction.atomic, place.url(place.NAME))
