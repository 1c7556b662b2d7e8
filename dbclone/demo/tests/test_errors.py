"""What goes wrong leaves nothing behind: each of these tests touches all eight tables."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.testing import ORDER, counts, order_body, post_user, product_body, rows


@pytest.mark.parametrize(
    "change",
    [
        {"lines": []},
        {"lines": [product_body("DESK", category="Office"), {"sku": "LAMP", "quantity": "2"}]},
        {"lines": [product_body("DESK", category="Office"), {"quantity": 1}]},
        {"customer": {"username": "bob"}},
        {"payment": {"amount": "50.00"}},
    ],
    ids=["no lines", "quantity", "no sku", "no address", "no reference"],
)
def test_incomplete_order(
    client: FlaskClient, order: dict[str, Any], change: dict[str, Any]
) -> None:
    response = client.post("/orders", json={**order_body("bob", "R-2"), **change})
    assert response.status_code == 400
    assert client.get("/users").get_json() == {"users": ["ann"]}
    assert counts() == rows(ORDER)


def test_body_that_is_not_json(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.post("/orders", data="customer=ann")
    assert (response.status_code, response.get_json()) == (
        400,
        {"error": "the body must be a JSON object"},
    )
    assert counts() == rows(ORDER)


def test_unknown_order(client: FlaskClient, order: dict[str, Any]) -> None:
    # Identity columns begin at 1, so that 0 is nobody's id whichever sequence values are used up.
    for method, path in (
        ("GET", "/orders/0"),
        ("POST", "/orders/0/ship"),
        ("DELETE", "/orders/0/lines/LAMP"),
    ):
        assert client.open(path, method=method).status_code == 404
    assert counts() == rows(ORDER)


def test_unknown_address(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.get("/nowhere").status_code == 404
    assert client.post(f"/orders/{order['id']}/burn").status_code == 404
    assert counts() == rows(ORDER)


def test_wrong_method(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.delete("/orders").status_code == 405
    assert counts() == rows(ORDER)


def test_delete_product_that_was_ordered(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.delete("/products/LAMP")
    assert response.status_code == 409
    assert "order_item_product_id_fkey" in response.get_json()["error"]
    assert counts() == rows(ORDER)


def test_address_of_another_customer(client: FlaskClient, order: dict[str, Any]) -> None:
    post_user(client, "bob")
    response = client.post(
        "/orders",
        json=order_body("cyd", "R-2", customer={"username": "cyd", "email": "bob@example.org"}),
    )
    assert response.status_code == 409
    assert client.get("/users").get_json() == {"users": ["ann", "bob"]}
    assert counts() == rows(ORDER, user=1)
