"""Orders are paid and refunded: each of these tests touches all eight tables."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Order, Payment
from shop.testing import ORDER, counts, order_body, post_order, rows


@pytest.fixture
def unpaid(client: FlaskClient) -> dict[str, Any]:
    """An order that nobody has paid."""
    placed: dict[str, Any] = post_order(client, reference=None)
    return placed


def pay(client: FlaskClient, order: dict[str, Any], reference: str, **more: Any) -> int:
    """Pay an order; return the status."""
    return client.post(
        "/payments", json={"order": order["id"], "reference": reference, **more}
    ).status_code


def test_pay_later(client: FlaskClient, unpaid: dict[str, Any]) -> None:
    assert counts() == rows(ORDER, payment=-1)
    assert pay(client, unpaid, "R-1", amount="50.00") == 201
    assert client.get(f"/orders/{unpaid['id']}").get_json() == {
        **unpaid,
        "status": "paid",
        "payment": "R-1",
    }
    assert counts() == rows(ORDER)


def test_payment_shows_itself(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.get("/payments/R-1").get_json() == {
        "order": order["id"],
        "amount": "50.00",
        "reference": "R-1",
    }
    assert counts() == rows(ORDER)


@pytest.mark.parametrize("amount", ["49.99", "50.01"])
def test_amount_has_to_match(
    client: FlaskClient, order: dict[str, Any], unpaid: dict[str, Any], amount: str
) -> None:
    assert pay(client, unpaid, "R-2", amount=amount) == 422
    assert Order.get_by_id(unpaid["id"]).status == "new"
    assert counts() == rows(ORDER, orders=1, order_item=2)


def test_pay_twice(client: FlaskClient, order: dict[str, Any]) -> None:
    assert pay(client, order, "R-2") == 409
    assert [payment.reference for payment in Payment.select()] == ["R-1"]
    assert counts() == rows(ORDER)


def test_reference_is_unique(
    client: FlaskClient, order: dict[str, Any], unpaid: dict[str, Any]
) -> None:
    assert pay(client, unpaid, "R-1") == 409
    assert Order.get_by_id(unpaid["id"]).status == "new"
    assert counts() == rows(ORDER, orders=1, order_item=2)


def test_order_with_a_wrong_amount_is_not_placed(
    client: FlaskClient, order: dict[str, Any]
) -> None:
    response = client.post(
        "/orders", json=order_body("bob", payment={"reference": "R-2", "amount": "1.00"})
    )
    assert (response.status_code, response.get_json()) == (422, {"error": "the order costs 50.00"})
    assert counts() == rows(ORDER)


def test_order_with_a_used_reference_is_not_placed(
    client: FlaskClient, order: dict[str, Any]
) -> None:
    response = client.post("/orders", json=order_body("bob", "R-1"))
    assert response.status_code == 409
    assert "payment_reference" in response.get_json()["error"]
    assert counts() == rows(ORDER)


def test_pay_what_is_cancelled(client: FlaskClient, order: dict[str, Any]) -> None:
    client.post(f"/orders/{order['id']}/cancel")
    assert pay(client, order, "R-2") == 422
    assert counts() == rows(ORDER, payment=-1)


def test_refund(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.delete("/payments/R-1").status_code == 204
    assert client.get(f"/orders/{order['id']}").get_json() == {
        **order,
        "status": "new",
        "payment": None,
    }
    assert counts() == rows(ORDER, payment=-1)


def test_refund_of_what_is_shipped(client: FlaskClient, order: dict[str, Any]) -> None:
    client.post(f"/orders/{order['id']}/ship")
    assert client.delete("/payments/R-1").status_code == 422
    assert counts() == rows(ORDER)


def test_pay_again_after_a_refund(client: FlaskClient, order: dict[str, Any]) -> None:
    client.delete("/payments/R-1")
    assert pay(client, order, "R-1") == 201
    assert Payment.get().order_id == order["id"]
    assert counts() == rows(ORDER)


def test_unknown_payment(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.get("/payments/R-2").status_code == 404
    assert client.delete("/payments/R-2").status_code == 404
    assert counts() == rows(ORDER)
