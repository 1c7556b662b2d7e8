"""Fixtures of the shop's tests. None of them creates, empties or drops a table: that is what
dbclone is for."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from shop.app import create_app
from shop.testing import counts, post_order, post_product, post_user, rows


@pytest.fixture(scope="session")
def app() -> Flask:
    """The application, built once: it holds no state of its own."""
    application: Flask = create_app()
    application.testing = True
    return application


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that speaks HTTP with the application, handed out on empty tables only.

    The shop finds users, roles and categories by name and creates what is missing, so that a row
    which an earlier test left behind could stand in for one that this test expects to be created.
    """
    assert counts() == rows()
    return app.test_client()


@pytest.fixture
def ann(client: FlaskClient) -> dict[str, Any]:
    """A user who has registered: one row in `user`, one in `role`."""
    user: dict[str, Any] = post_user(client, "ann")
    return user


@pytest.fixture
def lamp(client: FlaskClient) -> dict[str, Any]:
    """A product in a top-level category: one row in `product`, one in `category`."""
    product: dict[str, Any] = post_product(client, "LAMP")
    return product


@pytest.fixture
def order(client: FlaskClient) -> dict[str, Any]:
    """A paid order of two different products by "ann": rows in all eight tables, as in
    `shop.testing.ORDER`."""
    placed: dict[str, Any] = post_order(client)
    return placed
