"""What is on the shelf: each of these tests touches the tables `category` and `product`."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Product
from shop.testing import counts, post_product, product_body, rows

from dbclone import Isolation


@pytest.mark.parametrize(("change", "left"), [(5, 15), (-10, 0), (0, 10)])
def test_change_stock(client: FlaskClient, lamp: dict[str, Any], change: int, left: int) -> None:
    assert client.post("/products/LAMP/stock", json={"change": change}).get_json() == {
        **lamp,
        "stock": left,
    }
    assert counts() == rows(category=1, product=1)


def test_stock_is_never_negative(client: FlaskClient, lamp: dict[str, Any]) -> None:
    response = client.post("/products/LAMP/stock", json={"change": -11})
    assert response.status_code == 409
    assert "product_stock_check" in response.get_json()["error"]
    assert client.get("/products/LAMP").get_json()["stock"] == 10
    assert counts() == rows(category=1, product=1)


def test_changes_add_up(client: FlaskClient, lamp: dict[str, Any]) -> None:
    # The one in the middle is refused; what came before it and what comes after it holds.
    answers = [
        client.post("/products/LAMP/stock", json={"change": change}).status_code
        for change in (-4, -7, -6, 3)
    ]
    assert answers == [200, 409, 200, 200]
    assert Product.get(Product.sku == "LAMP").stock == 3
    assert counts() == rows(category=1, product=1)


def test_stock_of_others_stays(client: FlaskClient, lamp: dict[str, Any]) -> None:
    post_product(client, "DESK", stock=7)
    client.post("/products/LAMP/stock", json={"change": -3})
    assert {product.sku: product.stock for product in Product.select()} == {"LAMP": 7, "DESK": 7}
    assert counts() == rows(category=1, product=2)


def test_first_stock_is_not_negative(client: FlaskClient, lamp: dict[str, Any]) -> None:
    assert (
        client.post(
            "/products", json=product_body("DESK", stock=-1, category="Elsewhere")
        ).status_code
        == 409
    )
    assert counts() == rows(category=1, product=1)


def test_change_has_to_be_an_integer(client: FlaskClient, lamp: dict[str, Any]) -> None:
    for change in ("5", 1.5, None, True):
        assert client.post("/products/LAMP/stock", json={"change": change}).status_code == 400
    assert client.get("/products/LAMP").get_json() == lamp
    assert counts() == rows(category=1, product=1)


def test_stock_of_an_unknown_product(client: FlaskClient, lamp: dict[str, Any]) -> None:
    assert client.post("/products/DESK/stock", json={"change": 1}).status_code == 404
    assert counts() == rows(category=1, product=1)


def test_report_of_what_runs_out(client: FlaskClient, lamp: dict[str, Any]) -> None:
    post_product(client, "DESK", stock=4)
    post_product(client, "VASE", stock=0)
    assert client.get("/reports/stock").get_json()["low"] == {"DESK": 4, "VASE": 0}
    assert client.get("/reports/stock?below=4").get_json()["low"] == {"VASE": 0}
    assert counts() == rows(category=1, product=3)


def test_report_of_what_stock_is_worth(client: FlaskClient, lamp: dict[str, Any]) -> None:
    post_product(client, "BULB", price="0.35", stock=3)
    assert client.get("/reports/stock").get_json()["worth"] == "201.05"
    assert counts() == rows(category=1, product=2)


def test_stock_as_sql_sees_it(
    client: FlaskClient, lamp: dict[str, Any], dbclone: Isolation
) -> None:
    post_product(client, "DESK", stock=5)
    row = dbclone.execute("SELECT sum(stock) FROM product").fetchone()
    assert row is not None
    assert row[0] == 15
    assert counts() == rows(category=1, product=2)
