"""What the suites do: every second test writes to two tables, the others to all eight, and each
counts the rows before and after.

The values are each test's own, so that the same statements also run where nothing is undone; there
the counts are not compared.
"""

from __future__ import annotations

import os

import pytest
from conftest import MARKS

pytestmark = MARKS
TESTS = int(os.environ["PEERS_TESTS"])
COUNTED = os.environ["PEERS_COUNTED"] == "1"
_TABLES = ('"user"', "role", "user_role", "category", "product", "orders", "order_item", "payment")
_COUNTS = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table})" for table in _TABLES)  # noqa: S608  # constants of this file


def expect(handle, *counts):
    found = handle.execute(_COUNTS)
    assert found == [counts] or not COUNTED


def product(handle, number, name):
    """Add a category and a product in one transaction and return the product's key."""
    with handle.transaction():
        ((category,),) = handle.execute(
            "INSERT INTO category (name) VALUES (%s) RETURNING id", (f"{name} {number}",)
        )
        ((key,),) = handle.execute(
            "INSERT INTO product (sku, name, price, stock, category_id) VALUES (%s, %s,"
            " 12.50, 9, %s) RETURNING id",
            (f"{name}-{number}", name, category),
        )
    return key


def order(handle, number):
    """Register a user, order two products and pay, in three transactions."""
    with handle.transaction():
        ((user,),) = handle.execute(
            'INSERT INTO "user" (username, email) VALUES (%s, %s) RETURNING id',
            (f"ann{number}", f"ann{number}@example.org"),
        )
        ((role,),) = handle.execute(
            "INSERT INTO role (name) VALUES (%s) RETURNING id", (f"customer{number}",)
        )
        handle.execute("INSERT INTO user_role (user_id, role_id) VALUES (%s, %s)", (user, role))
    products = [product(handle, number, name) for name in ("lamp", "desk")]
    with handle.transaction():
        ((placed,),) = handle.execute(
            "INSERT INTO orders (user_id) VALUES (%s) RETURNING id", (user,)
        )
        for key in products:
            handle.execute(
                "INSERT INTO order_item (order_id, product_id, quantity, unit_price) VALUES"
                " (%s, %s, 2, 12.50)",
                (placed, key),
            )
            handle.execute("UPDATE product SET stock = stock - 2 WHERE id = %s", (key,))
        handle.execute(
            "INSERT INTO payment (order_id, amount, reference) VALUES (%s, 50, %s)",
            (placed, f"payment {number}"),
        )
        handle.execute("UPDATE orders SET status = 'paid' WHERE id = %s", (placed,))


@pytest.mark.parametrize("number", range(TESTS))
def test_shop(handle, number):
    expect(handle, 0, 0, 0, 0, 0, 0, 0, 0)
    if number % 2:
        order(handle, number)
        expect(handle, 1, 1, 1, 2, 2, 1, 2, 1)
    else:
        product(handle, number, "lamp")
        expect(handle, 0, 0, 0, 1, 1, 0, 0, 0)
