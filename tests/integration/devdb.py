"""A developer's own database beside the one being built: what a project's files name, and what
nothing may ever touch."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from dbclone.server.dsn import Dsn
from dbclone.server.server import Server

_STATE = (
    "SELECT ctid::text, xmin::text, * FROM customer ORDER BY ctid",
    "SELECT oid, relname::text, relfilenode, xmin::text FROM pg_class ORDER BY oid",
    "SELECT oid, nspname::text, xmin::text FROM pg_namespace ORDER BY oid",
    "SELECT oid, proname::text FROM pg_proc WHERE oid >= 16384 ORDER BY oid",
    "SELECT d.oid, datname::text, d.xmin::text, shobj_description(d.oid, 'pg_database'),"
    " datacl::text FROM pg_database d"
    " WHERE datname = current_database()",
    "SELECT setdatabase::regclass::text, setconfig FROM pg_db_role_setting WHERE setdatabase"
    " = (SELECT oid FROM pg_database"
    " WHERE datname = current_database())",
)


@dataclass
class Developer:
    """The database of a developer: `dsn` leads there."""

    dsn: Dsn
    before: list[Any]

    def url(self, driver: str = "") -> str:
        """The URL as a project's file has it, for one of SQLAlchemy's drivers or libpq."""
        return self.dsn.url.replace("postgresql", f"postgresql{driver}", 1)

    @property
    def name(self) -> str:
        return self.dsn.get("dbname")

    def state(self) -> list[Any]:
        """Return all that a change would show in: rows with where they are and who wrote them,
        objects, settings."""
        with psycopg.connect(self.dsn.url) as connection:
            return [connection.execute(query.encode()).fetchall() for query in _STATE]

    def untouched(self) -> None:
        """Assert that nothing has been written there."""
        assert len(self.before[0]) == 3
        assert self.state() == self.before


@contextlib.contextmanager
def developer(server: Server) -> Iterator[Developer]:
    """Give a developer's database with rows on a server, dropped afterwards."""
    name = sql.Identifier(f"devdb_{uuid.uuid4().hex[:8]}")
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    try:
        # Analyzed and vacuumed by nobody: what changes, somebody has changed.
        dsn = server.database(name._obj[0]).replace(
            user=server.dsn.get("user"), password="d3vel0per"
        )
        with psycopg.connect(dsn.url, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE customer (id int PRIMARY KEY, name text) WITH"
                " (autovacuum_enabled = false)"
            )
            connection.execute("INSERT INTO customer VALUES (1, 'ann'), (2, 'bob'), (3, 'cid')")
        found = Developer(dsn, [])
        found.before = found.state()
        yield found
    finally:
        server.connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
