"""The fixtures of the benchmark's shop: an application, a client, and a database for the worker
unless dbclone provides it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from harness import Names, own_database
from shop.app import create_app


@pytest.fixture(scope="session", autouse=True)
def _database() -> Iterator[None]:
    """What the contender needs for its whole session."""
    with own_database():
        yield


@pytest.fixture(scope="session")
def app() -> Flask:
    """The application, built once."""
    application: Flask = create_app()
    application.testing = True
    return application


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that speaks HTTP with the application."""
    return app.test_client()


@pytest.fixture
def names() -> Names:
    """The names that this test uses."""
    return Names()
