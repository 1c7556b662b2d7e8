"""How the tests of the benchmark's shop are isolated: one of several ways, told by
BENCHMARK_CONTENDER. The tests are the same.

recipe: a randomly named database per worker; each test creates its tables, drops them, and has a
connection of its own. kept: the same, but the connection is kept. truncate_all: tables are made
once; after each test one TRUNCATE names all of them. none: nothing is undone; the same statements
with values that no other test uses, and nobody asserts what was counted. leaky: nothing is undone,
and counts are asserted: what a broken isolation looks like. Anything else: dbclone does it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from flask.testing import FlaskClient
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from shop import ordering
from shop.models import MODELS, db
from shop.views_users import grant

CONTENDER = os.environ["BENCHMARK_CONTENDER"]
_NUMBERS = itertools.count(1)
_NAMES = sql.SQL(", ").join(sql.Identifier(model._meta.table_name) for model in MODELS)


class Names:
    """Names of users, products and so on: as they are, or each test's own where nothing is undone."""

    def __init__(self) -> None:
        self.suffix = f"-{next(_NUMBERS)}" if CONTENDER == "none" else ""
        if CONTENDER == "none":  # the shop's own role, too, is then made in each test, as elsewhere
            ordering.grant = lambda user, role: grant(user, self(role))

    def __call__(self, name: str) -> str:
        return name + self.suffix


def with_test_db(models: Sequence[type]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a test that uses these models."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        if CONTENDER not in ("recipe", "kept", "truncate_all"):
            return test

        @functools.wraps(test)
        def wrapped(*arguments: Any, **keywords: Any) -> None:
            db.connect(reuse_if_open=True)
            if CONTENDER != "truncate_all":
                db.create_tables(models)
            try:
                test(*arguments, **keywords)
            finally:
                db.connect(reuse_if_open=True)
                if CONTENDER == "truncate_all":
                    db.execute_sql(sql.SQL("TRUNCATE {}").format(_NAMES).as_string())
                else:
                    db.drop_tables(models)
                if CONTENDER == "recipe":
                    db.close_all()

        return wrapped

    return decorate


@contextlib.contextmanager
def own_database() -> Iterator[None]:
    """Make a database with a random name for the block, and point the application at it; not if
    dbclone does that."""
    if CONTENDER not in ("recipe", "kept", "truncate_all", "none", "leaky"):
        yield
        return
    url = os.environ["BENCHMARK_URL"]
    target: dict[str, Any] = {
        key: value for key, value in conninfo_to_dict(url).items() if key != "dbname"
    }
    name = f"benchmark_{secrets.token_hex(8)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    db.init(name, prefer_psycopg3=True, **target)
    if CONTENDER not in ("recipe", "kept"):
        with db.connection_context():
            db.create_tables(MODELS)
    try:
        yield
    finally:
        db.close_all()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )


def expect(models: Sequence[Any], *expected: int) -> None:
    """Count the rows of these tables in one query, and hold them against what is expected (nothing:
    that they are empty)."""
    counts = [
        sql.SQL("(SELECT count(*) FROM {})").format(sql.Identifier(model._meta.table_name))
        for model in models
    ]
    found = db.execute_sql(
        sql.SQL("SELECT {}").format(sql.SQL(", ").join(counts)).as_string()
    ).fetchone()
    assert CONTENDER == "none" or tuple(found) == (expected or (0,) * len(models))


def add_product(client: FlaskClient, names: Names) -> None:
    """Add a product in a category: a row in two tables."""
    body = {"sku": names("LAMP"), "name": "A lamp", "price": "20.00", "category": names("Home")}
    response = client.post("/products", json=body)
    assert response.status_code == 201, response.text
    assert response.get_json()["sku"] == names("LAMP")


def order(client: FlaskClient, names: Names) -> None:
    """Place an order of two products: rows in all eight tables."""
    lamp, novel = names("LAMP"), names("NOVEL")
    lines = [
        {
            "sku": lamp,
            "name": "A lamp",
            "price": "20.00",
            "category": f"{names('Home')}/Light",
            "quantity": 2,
        },
        {
            "sku": novel,
            "name": "A novel",
            "price": "10.00",
            "category": names("Books"),
            "quantity": 1,
        },
    ]
    customer = {"username": names("ann"), "email": f"{names('ann')}@example.org"}
    response = client.post(
        "/orders",
        json={"customer": customer, "lines": lines, "payment": {"reference": names("R-1")}},
    )
    assert response.status_code == 201, response.text
    assert response.get_json()["lines"] == {lamp: 2, novel: 1}
