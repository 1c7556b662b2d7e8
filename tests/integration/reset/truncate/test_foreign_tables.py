"""A reset never reaches another server (C4, C5): foreign tables and trees with a foreign leaf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.server.server import Server
from dbclone.settings import Settings

from ....shop import cloned

SCHEMA = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host {host}, port {port}, dbname 'far_away');
CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user {user});
CREATE TABLE plain (k int, v text);
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part_here PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE FOREIGN TABLE part_far PARTITION OF part FOR VALUES FROM (10) TO (100) SERVER far OPTIONS (table_name 'sentinel');
CREATE TABLE base (k int, v text);
CREATE FOREIGN TABLE heir_far () INHERITS (base) SERVER far OPTIONS (table_name 'sentinel');
CREATE FOREIGN TABLE alone_far (k int, v text) SERVER far OPTIONS (table_name 'sentinel');
"""


@pytest.fixture
def far_away(server: Server) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Another database, that is not dbclone's, with rows that nobody may touch."""
    if not server.fetch("SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw'"):
        pytest.skip("this server has no postgres_fdw")
    server.connection.execute("CREATE DATABASE far_away")
    with psycopg.connect(server.database("far_away").url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE sentinel (k int, v text); INSERT INTO sentinel SELECT g, 'kept'"
            " FROM generate_series(10, 19) g"
        )
        yield connection
    server.connection.execute("DROP DATABASE far_away WITH (FORCE)")


@pytest.mark.parametrize("reset", ["truncate", "rollback", "clone", "drop", "auto"])
@pytest.mark.parametrize("rows", [5, 50_000])
def test_rows_of_another_server_are_never_touched(
    server: Server,
    settings: Settings,
    tmp_path: Path,
    far_away: psycopg.Connection[tuple[object, ...]],
    reset: str,
    rows: int,
) -> None:
    """C5, S4: neither by a DELETE nor, where a local table grew large, by a TRUNCATE of a table
    above the foreign one."""
    dsn = server.database("far_away")
    schema = (
        sql.SQL(SCHEMA)
        .format(host=dsn.get("host"), port=dsn.get("port"), user=dsn.get("user"))
        .as_string(far_away)
    )
    with cloned(server, settings, tmp_path, schema, by_callable=True) as clone:
        for _ in range(2):
            with clone.isolated(reset, "far") as isolation:
                assert isolation.execute("SELECT count(*) FROM ONLY base").fetchone() == (0,)
                assert isolation.execute("SELECT count(*) FROM part").fetchone() == (10,)
                for table in ("plain", "part_here", "base"):
                    isolation.execute(
                        sql.SQL(
                            "INSERT INTO {} SELECT 1, 'here' FROM generate_series(1, %s)"
                        ).format(sql.Identifier(table)),
                        [rows],
                    )
        assert far_away.execute("SELECT count(*), min(v) FROM sentinel").fetchone() == (10, "kept")
        with psycopg.connect(clone.url) as connection:
            if reset != "drop":
                assert connection.execute("SELECT count(*) FROM part_here").fetchone() == (0,)
                assert connection.execute("SELECT count(*) FROM ONLY base").fetchone() == (0,)
