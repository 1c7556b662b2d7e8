"""The oracle notices what it is there to notice: each kind of change shows, and no change does not."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from dbclone.server.server import Server

from ..oracle import fingerprint

SCHEMA = """
CREATE TABLE a (id serial PRIMARY KEY, x text CHECK (x <> 'y'));
INSERT INTO a (x) VALUES ('one');
CREATE SCHEMA "o.dd"; CREATE TABLE "o.dd"."T" (v int);
CREATE SEQUENCE free;
CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE p (v int) PARTITION BY LIST (v); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE VIEW w AS SELECT 1 AS one;
"""


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    server.connection.execute("CREATE DATABASE oracle")
    url = server.database("oracle").url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA)
    yield url
    server.connection.execute("DROP DATABASE oracle WITH (FORCE)")


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO a (id, x) VALUES (9, 'two')",
        "UPDATE a SET x = 'uno'",
        "DELETE FROM a",
        'INSERT INTO "o.dd"."T" VALUES (1)',
        "INSERT INTO p VALUES (1)",
        "SELECT nextval('free')",
        "SELECT setval('free', 1, true)",
        "ALTER TABLE a ADD COLUMN z int",
        "ALTER TABLE a DROP CONSTRAINT a_x_check",
        "CREATE INDEX ON a (x)",
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "CREATE OR REPLACE VIEW w AS SELECT 2 AS one",
        "ALTER TABLE a ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON a TO PUBLIC",
        "CREATE TABLE b ()",
        "DROP TABLE p1",
        "CREATE TYPE mood AS ENUM ('good')",
        "CREATE SCHEMA other",
    ],
)
def test_a_change_shows(database: str, change: str) -> None:
    before = fingerprint(database)
    assert fingerprint(database) == before
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(change.encode())
    assert fingerprint(database) != before
