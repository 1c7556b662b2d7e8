"""Orders are placed: each of these tests touches all eight tables."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Order, OrderItem, Product, User
from shop.testing import ORDER, counts, order_body, post_order, post_user, product_body, rows

from dbclone import Isolation


def test_order_fills_every_table(client: FlaskClient) -> None:
    post_order(client)
    assert min(counts().values()) == 1
    assert counts() == rows(ORDER)


def test_order_as_sql_sees_it(
    client: FlaskClient, order: dict[str, Any], dbclone: Isolation
) -> None:
    row = dbclone.execute(
        'SELECT count(*) FROM "user" JOIN orders ON user_id = "user".id JOIN payment ON'
        " order_id = orders.id"
    ).fetchone()
    assert row is not None
    assert row[0] == 1
    assert counts() == rows(ORDER)


def test_order_shows_itself(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.get(f"/orders/{order['id']}").get_json() == {
        "id": Order.get().id,
        "customer": "ann",
        "status": "paid",
        "lines": {"LAMP": 2, "NOVEL": 1},
        "total": "50.00",
        "payment": "R-1",
    }
    assert counts() == rows(ORDER)


def test_second_order_finds_everything_there(client: FlaskClient, order: dict[str, Any]) -> None:
    assert post_order(client, reference="R-2")["id"] != order["id"]
    assert counts() == rows(ORDER, orders=1, order_item=2, payment=1)


def test_another_customer_shares_the_role(client: FlaskClient, order: dict[str, Any]) -> None:
    post_order(client, "bob", "R-2")
    assert counts() == rows(ORDER, user=1, user_role=1, orders=1, order_item=2, payment=1)


@pytest.mark.parametrize("more", [2, 4])
def test_many_orders(client: FlaskClient, order: dict[str, Any], more: int) -> None:
    for number in range(more):
        post_order(client, reference=f"M-{number}")
    assert Product.get(Product.sku == "LAMP").stock == 8 - 2 * more
    assert counts() == rows(ORDER, orders=more, order_item=2 * more, payment=more)


def test_registered_user_becomes_a_customer(client: FlaskClient, ann: dict[str, Any]) -> None:
    post_order(client)
    assert client.get("/users/ann").get_json() == {
        **{k: v for k, v in ann.items() if k != "applied_for"},
        "roles": ["customer"],
    }
    assert counts() == rows(ORDER)


def test_line_keeps_the_price_of_its_day(client: FlaskClient, order: dict[str, Any]) -> None:
    client.patch("/products/LAMP", json={"price": "25.00"})
    assert post_order(client, reference="R-2")["total"] == "60.00"
    assert client.get(f"/orders/{order['id']}").get_json()["total"] == "50.00"
    assert counts() == rows(ORDER, orders=1, order_item=2, payment=1)


def test_order_takes_from_the_stock(client: FlaskClient, order: dict[str, Any]) -> None:
    assert {product.sku: product.stock for product in Product.select()} == {"LAMP": 8, "NOVEL": 9}
    assert counts() == rows(ORDER)


def test_short_stock_rolls_everything_back(client: FlaskClient, order: dict[str, Any]) -> None:
    lines = [
        product_body("DESK", category="Office"),
        {"sku": "NOVEL", "quantity": 3},
        {"sku": "LAMP", "quantity": 9},
    ]
    response = client.post("/orders", json=order_body("bob", "R-2", lines=lines))
    assert (response.status_code, response.get_json()) == (
        409,
        {"error": "not enough LAMP in stock"},
    )
    assert {product.sku: product.stock for product in Product.select()} == {"LAMP": 8, "NOVEL": 9}
    assert counts() == rows(ORDER)


def test_gift_out_of_stock_is_left_out(client: FlaskClient) -> None:
    # The gift's savepoint is rolled back, and with it the product and
    # category that it brought along.
    gift = product_body("SOCKS", category="Gifts", stock=0, optional=True)
    order = post_order(client, lines=[*order_body()["lines"], gift])
    assert order["lines"] == {"LAMP": 2, "NOVEL": 1}
    assert counts() == rows(ORDER)


def test_gift_that_is_refused_is_left_out(client: FlaskClient) -> None:
    gift = product_body("SOCKS", category="Gifts", quantity=0, optional=True)
    order = post_order(client, lines=[gift, *order_body()["lines"]])
    assert order["lines"] == {"LAMP": 2, "NOVEL": 1}
    assert counts() == rows(ORDER)


def test_product_appears_once(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.post(
        "/orders",
        json=order_body("bob", "R-2", lines=[{"sku": "LAMP"}, {"sku": "NOVEL"}, {"sku": "LAMP"}]),
    )
    assert response.status_code == 409
    assert Product.get(Product.sku == "LAMP").stock == 8
    assert counts() == rows(ORDER)


def test_quantity_is_positive(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.post(
        "/orders", json=order_body("bob", "R-2", lines=[{"sku": "LAMP", "quantity": 0}])
    )
    assert response.status_code == 409
    assert "order_item_quantity_check" in response.get_json()["error"]
    assert counts() == rows(ORDER)


def test_unknown_product(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.post(
        "/orders", json=order_body("bob", "R-2", lines=[{"sku": "NOVEL"}, {"sku": "DESK"}])
    )
    assert (response.status_code, response.get_json()) == (422, {"error": "no product DESK"})
    assert OrderItem.select().count() == 2
    assert counts() == rows(ORDER)


def test_inactive_customer(client: FlaskClient, order: dict[str, Any]) -> None:
    client.patch("/users/ann", json={"active": False})
    assert client.post("/orders", json=order_body("ann", "R-2")).status_code == 403
    assert counts() == rows(ORDER)


def test_list_orders_of_a_customer(client: FlaskClient, order: dict[str, Any]) -> None:
    others = [post_order(client, "bob", f"B-{number}")["id"] for number in range(2)]
    post_user(client, "cyd")
    found = {
        name: client.get("/orders", query_string={"customer": name}).get_json()["orders"]
        for name in ("ann", "bob", "cyd")
    }
    assert found == {"ann": [order["id"]], "bob": others, "cyd": []}
    assert User.select().count() == 3
    assert counts() == rows(ORDER, user=2, user_role=1, orders=2, order_item=4, payment=2)


def test_list_orders_of_a_status(client: FlaskClient, order: dict[str, Any]) -> None:
    unpaid = post_order(client, reference=None)["id"]
    assert client.get("/orders?status=paid").get_json() == {"orders": [order["id"]]}
    assert client.get("/orders?status=new").get_json() == {"orders": [unpaid]}
    assert client.get("/orders").get_json() == {"orders": [order["id"], unpaid]}
    assert counts() == rows(ORDER, orders=1, order_item=2)
