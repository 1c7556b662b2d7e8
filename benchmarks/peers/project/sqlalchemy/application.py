"""The engine of the application."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import place
from sqlalchemy import URL, Engine, create_engine


@contextlib.contextmanager
def connected(name: str) -> Iterator[Engine]:
    """Yield an engine for a database of the benchmark's server."""
    where = {"username": place.USER, "password": place.PASSWORD or None, "database": name}
    query = {"host": place.HOST, "port": str(place.PORT)}  # a folder is no host of a URL
    engine = create_engine(URL.create("postgresql+psycopg", **where, query=query))
    yield engine
    engine.dispose()
