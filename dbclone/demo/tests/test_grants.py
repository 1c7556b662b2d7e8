"""Roles are granted to customers: each of these tests touches all eight tables."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient
from shop.testing import ORDER, counts, post_order, rows


def test_grant_another_role(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.put("/users/ann/roles/clerk")
    assert (response.status_code, response.get_json()["roles"]) == (201, ["clerk", "customer"])
    assert counts() == rows(ORDER, role=1, user_role=1)


def test_grant_twice_changes_nothing(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.put("/users/ann/roles/customer")
    assert (response.status_code, response.get_json()["roles"]) == (200, ["customer"])
    assert counts() == rows(ORDER)


def test_revoked_role_returns_with_the_next_order(
    client: FlaskClient, order: dict[str, Any]
) -> None:
    assert client.delete("/users/ann/roles/customer").status_code == 204
    assert client.delete("/users/ann/roles/customer").status_code == 404
    assert counts() == rows(ORDER, user_role=-1)
    post_order(client, reference="R-2")
    assert counts() == rows(ORDER, orders=1, order_item=2, payment=1)


def test_delete_role_that_somebody_has(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.delete("/roles/customer")
    assert response.status_code == 409
    assert "user_role_role_id_fkey" in response.get_json()["error"]
    assert counts() == rows(ORDER)
