"""Orders are shipped, cancelled, changed: each of these tests touches all eight tables."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient
from shop.models import Order, Product
from shop.testing import ORDER, counts, post_order, rows


def test_ship(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.post(f"/orders/{order['id']}/ship").get_json() == {**order, "status": "shipped"}
    assert counts() == rows(ORDER)


def test_ship_what_is_not_paid(client: FlaskClient, order: dict[str, Any]) -> None:
    unpaid = post_order(client, reference=None)
    response = client.post(f"/orders/{unpaid['id']}/ship")
    assert (response.status_code, response.get_json()) == (422, {"error": "the order is new"})
    assert counts() == rows(ORDER, orders=1, order_item=2)


def test_ship_twice(client: FlaskClient, order: dict[str, Any]) -> None:
    answers = [client.post(f"/orders/{order['id']}/ship").status_code for _ in range(2)]
    assert answers == [200, 422]
    assert counts() == rows(ORDER)


def test_cancel_gives_everything_back(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.post(f"/orders/{order['id']}/cancel").get_json() == {
        **order,
        "status": "cancelled",
        "payment": None,
    }
    assert {product.sku: product.stock for product in Product.select()} == {"LAMP": 10, "NOVEL": 10}
    assert counts() == rows(ORDER, payment=-1)


def test_cancel_twice(client: FlaskClient, order: dict[str, Any]) -> None:
    answers = [client.post(f"/orders/{order['id']}/cancel").status_code for _ in range(2)]
    assert answers == [200, 422]
    assert Product.get(Product.sku == "LAMP").stock == 10
    assert counts() == rows(ORDER, payment=-1)


def test_cancel_what_is_shipped(client: FlaskClient, order: dict[str, Any]) -> None:
    client.post(f"/orders/{order['id']}/ship")
    response = client.post(f"/orders/{order['id']}/cancel")
    assert (response.status_code, response.get_json()) == (422, {"error": "the order is shipped"})
    assert Product.get(Product.sku == "LAMP").stock == 8
    assert counts() == rows(ORDER)


def test_delete_takes_the_lines_along(client: FlaskClient, order: dict[str, Any]) -> None:
    unpaid = post_order(client, reference=None)
    assert client.delete(f"/orders/{unpaid['id']}").status_code == 204
    assert [row.id for row in Order.select()] == [order["id"]]
    assert counts() == rows(ORDER)


def test_delete_what_is_paid(client: FlaskClient, order: dict[str, Any]) -> None:
    response = client.delete(f"/orders/{order['id']}")
    assert response.status_code == 409
    assert "payment_order_id_fkey" in response.get_json()["error"]
    assert counts() == rows(ORDER)


def test_drop_line(client: FlaskClient, order: dict[str, Any]) -> None:
    unpaid = post_order(client, "bob", None)
    response = client.delete(f"/orders/{unpaid['id']}/lines/lamp")
    assert (response.get_json()["lines"], response.get_json()["total"]) == ({"NOVEL": 1}, "10.00")
    assert Product.get(Product.sku == "LAMP").stock == 8
    assert counts() == rows(ORDER, user=1, user_role=1, orders=1, order_item=1)


def test_drop_line_of_what_is_paid(client: FlaskClient, order: dict[str, Any]) -> None:
    assert client.delete(f"/orders/{order['id']}/lines/LAMP").status_code == 422
    assert client.get(f"/orders/{order['id']}").get_json() == order
    assert counts() == rows(ORDER)


def test_drop_line_that_is_not_there(client: FlaskClient, order: dict[str, Any]) -> None:
    unpaid = post_order(client, reference=None, lines=[{"sku": "NOVEL"}])
    assert client.delete(f"/orders/{unpaid['id']}/lines/LAMP").status_code == 404
    assert counts() == rows(ORDER, orders=1, order_item=1)


def test_delete_user_who_has_ordered(client: FlaskClient, order: dict[str, Any]) -> None:
    # The grants would go with the user; that the user stays brings them back.
    assert client.delete("/users/ann").status_code == 409
    assert client.get("/users/ann").get_json()["roles"] == ["customer"]
    assert counts() == rows(ORDER)
