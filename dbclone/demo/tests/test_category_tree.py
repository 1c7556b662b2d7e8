"""The category tree: each of these tests touches the tables `category` and `product`."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from shop.models import Category
from shop.testing import counts, post_product, rows


@pytest.mark.parametrize("path", ["Home", "Home/Light", "Home/Light/Lamps"])
def test_product_creates_the_path(client: FlaskClient, path: str) -> None:
    names = path.split("/")
    assert (
        post_product(client, "LAMP", category=path)["category"]
        == Category.get(Category.name == names[-1]).id
    )
    assert counts() == rows(category=len(names), product=1)


def test_paths_share_what_they_can(client: FlaskClient) -> None:
    post_product(client, "LAMP", category="Home/Light")
    post_product(client, "DESK", category="Home/Desks")
    assert Category.select().where(Category.parent.is_null()).count() == 1
    assert counts() == rows(category=3, product=2)


def test_same_name_below_different_parents(client: FlaskClient) -> None:
    first = post_product(client, "LAMP", category="Home/Light")
    second = post_product(client, "TORCH", category="Camping/Light")
    assert first["category"] != second["category"]
    assert counts() == rows(category=4, product=2)


def test_tree_is_nested(client: FlaskClient) -> None:
    for sku, path in (
        ("LAMP", "Home/Light"),
        ("VASE", "Home"),
        ("NOVEL", "Books/Fiction/New"),
    ):
        post_product(client, sku, category=path)
    assert client.get("/categories").get_json() == {
        "tree": {"Books": {"Fiction": {"New": {}}}, "Home": {"Light": {}}}
    }
    assert counts() == rows(category=5, product=3)


def test_products_of_a_category_and_below(client: FlaskClient) -> None:
    home = post_product(client, "VASE", category="Home")["category"]
    light = post_product(client, "LAMP", category="Home/Light")["category"]
    post_product(client, "BULB", category="Home/Light/Bulbs")
    post_product(client, "NOVEL", category="Books")
    assert client.get(f"/categories/{home}/products").get_json() == {
        "products": ["BULB", "LAMP", "VASE"]
    }
    assert client.get(f"/categories/{light}/products").get_json() == {"products": ["BULB", "LAMP"]}
    assert counts() == rows(category=4, product=4)


def test_rename(client: FlaskClient, lamp: dict[str, Any]) -> None:
    response = client.patch(f"/categories/{lamp['category']}", json={"name": "House"})
    assert response.get_json() == {"id": lamp["category"], "name": "House", "parent": None}
    assert client.get("/categories").get_json() == {"tree": {"House": {}}}
    assert counts() == rows(category=1, product=1)


def test_rename_to_a_siblings_name(client: FlaskClient) -> None:
    light = post_product(client, "LAMP", category="Home/Light")["category"]
    post_product(client, "DESK", category="Home/Desks")
    assert client.patch(f"/categories/{light}", json={"name": "Desks"}).status_code == 409
    assert Category.get_by_id(light).name == "Light"
    assert counts() == rows(category=3, product=2)


def test_move_to_another_parent(client: FlaskClient, lamp: dict[str, Any]) -> None:
    books = post_product(client, "NOVEL", category="Books")["category"]
    response = client.patch(f"/categories/{books}", json={"parent": lamp["category"]})
    assert response.get_json()["parent"] == lamp["category"]
    assert client.get("/categories").get_json() == {"tree": {"Home": {"Books": {}}}}
    assert counts() == rows(category=2, product=2)


def test_move_below_itself_is_refused(client: FlaskClient, lamp: dict[str, Any]) -> None:
    light = post_product(client, "BULB", category="Home/Light")["category"]
    response = client.patch(
        f"/categories/{lamp['category']}", json={"name": "Lost", "parent": light}
    )
    assert response.status_code == 422
    assert client.get("/categories").get_json() == {"tree": {"Home": {"Light": {}}}}
    assert counts() == rows(category=2, product=2)


def test_delete_keeps_what_is_in_use(client: FlaskClient) -> None:
    light = post_product(client, "LAMP", category="Home/Light")["category"]
    home = Category.get_by_id(light).parent_id
    assert client.delete(f"/categories/{light}").status_code == 409
    assert client.delete(f"/categories/{home}").status_code == 409
    client.delete("/products/LAMP")
    assert client.delete(f"/categories/{light}").status_code == 204
    assert counts() == rows(category=1)
