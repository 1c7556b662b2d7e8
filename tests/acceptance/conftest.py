"""What tests share that run pytest and the commands as a user does: a developer's own database."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.server.server import Server


@dataclass
class Developer:
    """A database of somebody, with a row in each table that the projects write to."""

    name: str
    server: Server

    @property
    def environ(self) -> dict[str, Any]:
        """How the projects learn where it is."""
        return {"DEV": json.dumps({**self.server.dsn.kwargs, "dbname": self.name})}

    def everything(self) -> Any:
        """Return its tables, its rows and their versions."""
        with psycopg.connect(self.server.database(self.name).url) as connection:
            tables = connection.execute(
                "SELECT relname, relkind FROM pg_class WHERE relnamespace = 2200 ORDER BY 1"
            ).fetchall()
            rows = connection.execute('SELECT ctid::text, xmin::text, u FROM "user" u').fetchall()
            return (
                tables,
                rows,
                connection.execute("SELECT last_value, is_called FROM user_id_seq").fetchall(),
            )


@pytest.fixture
def developer(server: Server) -> Iterator[Developer]:
    found = Developer(f"dev_{uuid.uuid4().hex[:8]}", server)
    name = sql.Identifier(found.name)
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    with psycopg.connect(server.database(found.name).url) as connection:
        connection.execute('CREATE TABLE "user" (id serial PRIMARY KEY, name text)')
        connection.execute("""INSERT INTO "user" (name) VALUES ('somebody')""")
    before = found.everything()
    yield found
    assert found.everything() == before
    server.connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
