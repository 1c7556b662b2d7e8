"""pytest-django, as its documentation says: tests are marked with `pytest.mark.django_db`; the benchmark says how."""

from __future__ import annotations

import contextlib
import json
import os

import place
import pytest
from django.db import connection, transaction
from handles import Handle

MARKS = [pytest.mark.django_db(**json.loads(os.environ["PEERS_MARK"]))]


class Django(Handle):
    """Over django.db.connection."""

    def execute(self, query, parameters=()):
        with connection.cursor() as cursor:
            cursor.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def transaction(self):
        with transaction.atomic():
            yield


@pytest.fixture
def handle():
    return Django(place.url(place.NAME))
