"""Products come and go: each of these tests touches the tables `category` and `product`."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Product
from shop.testing import counts, post_product, product_body, rows


def test_create_product_shows_it(client: FlaskClient, lamp: dict[str, Any]) -> None:
    assert client.get("/products/LAMP").get_json() == lamp
    assert (lamp["name"], lamp["price"], lamp["stock"]) == ("The lamp", "20.00", 10)
    assert counts() == rows(category=1, product=1)


def test_sku_is_kept_in_capitals(client: FlaskClient) -> None:
    assert post_product(client, "lamp")["sku"] == "LAMP"
    assert client.get("/products/lamp").get_json()["sku"] == "LAMP"
    assert counts() == rows(category=1, product=1)


def test_sku_is_unique(client: FlaskClient, lamp: dict[str, Any]) -> None:
    response = client.post("/products", json=product_body("lamp", category="Elsewhere"))
    assert response.status_code == 409
    assert "product_sku" in response.get_json()["error"]
    assert counts() == rows(category=1, product=1)


@pytest.mark.parametrize("price", ["0", "0.01", "99999999.99"])
def test_price_is_exact(client: FlaskClient, price: str) -> None:
    post_product(client, "LAMP", price=price)
    assert Product.get(Product.sku == "LAMP").price == Decimal(price)
    assert counts() == rows(category=1, product=1)


@pytest.mark.parametrize("price", ["1.999", "abc", 1.5, "NaN"])
def test_price_has_to_be_an_amount(
    client: FlaskClient, lamp: dict[str, Any], price: object
) -> None:
    response = client.patch("/products/LAMP", json={"price": price, "category": "Elsewhere"})
    assert response.status_code == 400
    assert client.get("/products/LAMP").get_json() == lamp
    assert counts() == rows(category=1, product=1)


def test_price_is_not_negative(client: FlaskClient, lamp: dict[str, Any]) -> None:
    response = client.post(
        "/products", json=product_body("DESK", price="-0.01", category="Elsewhere")
    )
    assert response.status_code == 409
    assert "product_price_check" in response.get_json()["error"]
    assert counts() == rows(category=1, product=1)


def test_price_has_to_fit(client: FlaskClient, lamp: dict[str, Any]) -> None:
    assert client.patch("/products/LAMP", json={"price": "100000000"}).status_code == 400
    assert client.get("/products/LAMP").get_json()["price"] == "20.00"
    assert counts() == rows(category=1, product=1)


def test_search_by_name(client: FlaskClient, lamp: dict[str, Any]) -> None:
    post_product(client, "DESK", name="A desk (100% oak)")
    post_product(client, "DESKLAMP")
    assert client.get("/products", query_string={"q": "LAMP"}).get_json() == {
        "products": ["DESKLAMP", "LAMP"]
    }
    assert client.get("/products", query_string={"q": "100%"}).get_json() == {"products": ["DESK"]}
    assert counts() == rows(category=1, product=3)


def test_search_by_price(client: FlaskClient, lamp: dict[str, Any]) -> None:
    post_product(client, "DESK", price="120.00")
    post_product(client, "BULB", price="3.50")
    assert client.get("/products", query_string={"max_price": "20"}).get_json() == {
        "products": ["BULB", "LAMP"]
    }
    assert counts() == rows(category=1, product=3)


def test_import_keeps_what_can_be_kept(client: FlaskClient, lamp: dict[str, Any]) -> None:
    # One in the middle violates a constraint, one is incomplete: their savepoints fail, the
    # transaction goes on.
    bodies = [
        product_body("DESK", category="Office"),
        product_body("LAMP", category="Refused"),
        {"sku": "BULB"},
        product_body("VASE"),
    ]
    response = client.post("/products/import", json={"products": bodies})
    assert response.get_json() == {"created": ["DESK", "VASE"], "refused": ["LAMP", "BULB"]}
    assert counts() == rows(category=2, product=3)


def test_delete_product_leaves_the_category(client: FlaskClient, lamp: dict[str, Any]) -> None:
    assert client.delete("/products/LAMP").status_code == 204
    assert client.get("/products/LAMP").status_code == 404
    assert counts() == rows(category=1)
