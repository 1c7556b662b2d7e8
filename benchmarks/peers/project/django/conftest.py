"""pytest-django, as its documentation says: tests are marked with `pytest.mark.django_db`; the
benchmark says how."""

from __future__ import annotations

import json
import os

import place
import pytest
from django.db import connection, transaction
from handles import Django

MARKS = [pytest.mark.django_db(**json.loads(os.environ["PEERS_MARK"]))]


@pytest.fixture
def handle():
    return Django(connection, transaction.atomic, place.url(place.NAME))
