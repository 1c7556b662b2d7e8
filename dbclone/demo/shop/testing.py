"""What the shop's tests share: bodies to post, and the rows of all tables."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient

from .models import db

TABLES = ("user", "role", "user_role", "category", "product", "orders", "order_item", "payment")

# One round trip for all tables, as every test asks this.
COUNTS = """
SELECT (SELECT count(*) FROM "user"), (SELECT count(*) FROM role),
       (SELECT count(*) FROM user_role), (SELECT count(*) FROM category),
       (SELECT count(*) FROM product), (SELECT count(*) FROM orders),
       (SELECT count(*) FROM order_item), (SELECT count(*) FROM payment)
"""

# The rows that post_order() leaves behind.
ORDER = {
    "user": 1,
    "role": 1,
    "user_role": 1,
    "category": 3,
    "product": 2,
    "orders": 1,
    "order_item": 2,
    "payment": 1,
}


def counts() -> dict[str, int]:
    """Return the number of rows of every table."""
    return dict(zip(TABLES, db.execute_sql(COUNTS).fetchone(), strict=True))


def rows(base: dict[str, int] | None = None, **changes: int) -> dict[str, int]:
    """Return the expected rows of every table: those of `base` (none if left out), with `changes`
    added to them."""
    expected = {**dict.fromkeys(TABLES, 0), **(base or {})}
    for table, change in changes.items():
        expected[table] += change
    return expected


def post_user(client: FlaskClient, username: str, **more: Any) -> dict[str, Any]:
    """Register a user and return the response."""
    return _created(
        client, "/users", {"username": username, "email": f"{username}@example.org", **more}
    )


def product_body(sku: str, **more: Any) -> dict[str, Any]:
    """Return what describes a product, with an ordinary name, price and category."""
    return {
        "sku": sku,
        "name": f"The {sku.lower()}",
        "price": "20.00",
        "category": "Home",
        **more,
    }


def post_product(client: FlaskClient, sku: str, **more: Any) -> dict[str, Any]:
    """Create a product and return the response."""
    return _created(client, "/products", product_body(sku, **more))


def order_body(username: str = "ann", reference: str | None = "R-1", **more: Any) -> dict[str, Any]:
    """Return an order of 2 lamps and 1 novel for 50.00: in the categories Home,
    Home/Light, Books; without reference, unpaid."""
    lines = [
        product_body("LAMP", category="Home/Light", quantity=2),
        product_body("NOVEL", category="Books", price="10.00", quantity=1),
    ]
    body = {
        "customer": {"username": username, "email": f"{username}@example.org"},
        "lines": lines,
        **more,
    }
    return body if reference is None else {"payment": {"reference": reference}, **body}


def post_order(
    client: FlaskClient, username: str = "ann", reference: str | None = "R-1", **more: Any
) -> dict[str, Any]:
    """Place an order and return the response."""
    return _created(client, "/orders", order_body(username, reference, **more))


def _created(client: FlaskClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 201, response.text
    return dict(response.get_json())
