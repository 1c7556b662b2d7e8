"""Where the tests of this project run: server and names, as the benchmark gave them, the schema,
and a database of one's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

HOST, PORT = os.environ["PEERS_HOST"], int(os.environ["PEERS_PORT"])
USER, PASSWORD = os.environ["PEERS_USER"], os.environ.get("PEERS_PASSWORD", "")
MAINTENANCE = os.environ["PEERS_MAINTENANCE"]  # the database that the benchmark was pointed at
NAME = os.environ["PEERS_NAME"]  # what databases and roles are to be called, or to begin with
SCHEMA = Path(__file__).parent / "schema.sql"


def target(database: str) -> dict[str, Any]:
    """Return what psycopg.connect needs for a database on this server."""
    password = {"password": PASSWORD} if PASSWORD else {}
    return {"host": HOST, "port": PORT, "user": USER, "dbname": database, **password}


def url(database: str) -> str:
    """Return the same as a URL."""
    user, password, host, name = (quote(part, safe="") for part in (USER, PASSWORD, HOST, database))
    return f"postgresql://{user}{':' if password else ''}{password}@{host}:{PORT}/{name}"


@contextlib.contextmanager
def own_database(name: str = NAME) -> Iterator[str]:
    """Make a database with the schema for the block, as a project does that has no tool for it;
    yield its name."""
    with psycopg.connect(**target(MAINTENANCE), autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(**target(name)) as connection:
                connection.execute(SCHEMA.read_bytes())
            yield name
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
