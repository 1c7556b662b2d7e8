"""Reports over orders: each of these tests touches all eight tables."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.testing import ORDER, counts, post_order, post_user, rows

from dbclone import Isolation


def test_revenue(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.get("/reports/revenue").get_json() == {"revenue": "50.00", "payments": 1}
    assert counts() == rows(ORDER)


@pytest.mark.parametrize("number", [2, 5])
def test_revenue_of_many_customers(client: FlaskClient, number: int) -> None:
    for customer in range(number):
        post_order(client, f"user{customer}", f"R-{customer}")
    assert client.get("/reports/revenue").get_json() == {
        "revenue": f"{50 * number}.00",
        "payments": number,
    }
    more = number - 1
    assert counts() == rows(
        ORDER, user=more, user_role=more, orders=more, order_item=2 * more, payment=more
    )


def test_revenue_without_what_was_refunded(client: FlaskClient, order: dict[str, Any]) -> None:
    client.delete("/payments/R-1")
    assert client.get("/reports/revenue").get_json() == {"revenue": "0.00", "payments": 0}
    assert counts() == rows(ORDER, payment=-1)


def test_revenue_as_sql_sees_it(
    client: FlaskClient, order: dict[str, Any], dbclone: Isolation
) -> None:
    post_order(client, "bob", "R-2", lines=[{"sku": "NOVEL", "quantity": 3}])
    row = dbclone.execute("SELECT sum(amount) FROM payment").fetchone()
    assert row is not None
    assert row[0] == 80
    assert counts() == rows(ORDER, user=1, user_role=1, orders=1, order_item=1, payment=1)


def test_sold_by_category(client: FlaskClient, order: dict[str, Any]) -> None:
    post_order(client, reference=None, lines=[{"sku": "NOVEL", "quantity": 4}])
    assert client.get("/reports/categories").get_json() == {"sold": {"Light": 2, "Books": 5}}
    assert counts() == rows(ORDER, orders=1, order_item=1)


def test_sold_without_what_was_cancelled(client: FlaskClient, order: dict[str, Any]) -> None:
    post_order(client, reference="R-2", lines=[{"sku": "NOVEL", "quantity": 4}])
    client.post(f"/orders/{order['id']}/cancel")
    assert client.get("/reports/categories").get_json() == {"sold": {"Books": 4}}
    assert counts() == rows(ORDER, orders=1, order_item=1)


def test_orders_by_customer(client: FlaskClient, order: dict[str, Any]) -> None:
    post_order(client, reference=None)
    post_user(client, "bob")
    assert client.get("/reports/customers").get_json() == {"orders": {"ann": 2, "bob": 0}}
    assert counts() == rows(ORDER, user=1, orders=1, order_item=2)


def test_orders_by_status(client: FlaskClient, order: dict[str, Any]) -> None:
    shipped = post_order(client, reference="R-2")
    client.post(f"/orders/{shipped['id']}/ship")
    post_order(client, "bob", None)
    assert client.get("/reports/status").get_json() == {
        "orders": {"new": 1, "paid": 1, "shipped": 1}
    }
    assert counts() == rows(ORDER, user=1, user_role=1, orders=2, order_item=4, payment=1)


def test_stock_after_orders(client: FlaskClient, order: dict[str, Any]) -> None:
    post_order(client, reference="R-2", lines=[{"sku": "LAMP", "quantity": 6}])
    assert client.get("/reports/stock").get_json() == {"low": {"LAMP": 2}, "worth": "130.00"}
    assert counts() == rows(ORDER, orders=1, order_item=1, payment=1)
