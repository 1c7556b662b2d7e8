"""Sandboxes in which one level is open, and programs that run twice."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from dbclone.clone.clone import Clone
from dbclone.reset.rollback import Level
from dbclone.sandbox.session import Session
from dbclone.server.server import Server

from ..twice import Both, twice


@pytest.fixture(scope="module")
def url_schema() -> str:
    """What the database of `url` has. Modules that want more override this; all have a table t."""
    return "CREATE TABLE t (a int UNIQUE)"


@pytest.fixture(scope="module")
def url(server: Server, url_schema: str) -> Iterator[str]:
    """A database of a module."""
    name = f"sandbox_{uuid.uuid4().hex[:8]}"
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    found = server.database(name).url
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute(url_schema.encode())
    yield found
    server.connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A sandbox in which one level is open; afterwards the table must be empty for everybody."""
    with psycopg.connect(url, autocommit=True) as real:
        found = Session(real)
        level = Level(found)
        level.enter()
        yield found
        if not real.closed:
            assert level.leave().spoiled == ""
        with psycopg.connect(url) as outside:
            assert outside.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.fixture
def both(clone: Clone) -> Both:
    return lambda program: twice(clone, program)
