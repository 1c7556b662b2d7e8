"""Tables that cannot simply be emptied: foreign ones, those whose triggers and rules say no, and
those whose rows must stay."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings

from ....oracle import fingerprint
from ....shop import cloned

REMOTE = "CREATE TABLE far (k int, v text); INSERT INTO far SELECT 100 + g, 'sentinel' FROM generate_series(1, 10) AS g"
LOCAL = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options});
CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user {user});
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part_near PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE FOREIGN TABLE part_far PARTITION OF part FOR VALUES FROM (100) TO (200) SERVER other OPTIONS (table_name 'far');
CREATE TABLE root (k int, v text);
CREATE FOREIGN TABLE heir () INHERITS (root) SERVER other OPTIONS (table_name 'far');
CREATE FOREIGN TABLE alone (k int, v text) SERVER other OPTIONS (table_name 'far');
INSERT INTO part VALUES (1, 'seed'); INSERT INTO root VALUES (2, 'seed')
"""


@pytest.fixture
def remote(server: Server) -> Iterator[Dsn]:
    """Another database, with ten rows that are nobody's to touch."""
    name = f"remote_{uuid.uuid4().hex[:8]}"
    server.connection.execute(
        psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
    )
    with psycopg.connect(server.database(name).url, autocommit=True) as connection:
        connection.execute(REMOTE)
    yield server.database(name)
    server.connection.execute(
        psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name))
    )


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_rows_of_another_server_are_never_touched(
    server: Server, settings: Settings, tmp_path: Path, remote: Dsn, reset: str
) -> None:
    """C5: TRUNCATE and DELETE of a table that is partitioned or inherited into a foreign one would
    empty that one too."""
    kwargs = remote.kwargs
    options = psycopg.sql.SQL(", ").join(
        psycopg.sql.SQL(name + " {}").format(str(kwargs[name]))
        for name in ("host", "port", "dbname")
    )
    schema = (
        psycopg.sql.SQL(LOCAL).format(options=options, user=str(kwargs["user"])).as_string(None)
    )
    with (
        cloned(server, settings, tmp_path, schema, by_callable=True) as clone,
        psycopg.connect(remote.url, autocommit=True) as far,
    ):
        truth = fingerprint(clone.url)
        for number in range(3):
            with clone.isolated(reset, "test") as isolation:
                isolation.execute(
                    "INSERT INTO part SELECT g, 'new' FROM generate_series(1, 50) AS g"
                )
                isolation.execute("UPDATE part_near SET v = 'changed' WHERE k = 1")
                isolation.execute("DELETE FROM ONLY root")
                isolation.execute(
                    "INSERT INTO root SELECT g, 'new' FROM generate_series(1, 5000) AS g"
                )
                if number:
                    isolation.execute("INSERT INTO alone VALUES (150, 'of a test')")
            if reset == "drop":
                clone.replace("a look", quiet=True)
            assert fingerprint(clone.url) == truth
            assert far.execute("SELECT count(*) FROM far WHERE v = 'sentinel'").fetchone() == (10,)
        # What a test writes there is no more undone than anything else on another server, unless
        # the transaction is.
        left = 0 if reset == "rollback" else 2
        assert far.execute("SELECT count(*) FROM far WHERE v <> 'sentinel'").fetchone() == (left,)


SAYING_NO = """
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;
CREATE TABLE plain (k int PRIMARY KEY, v text);
CREATE TABLE skipped (LIKE plain INCLUDING ALL);
CREATE TRIGGER no BEFORE DELETE ON skipped FOR EACH ROW EXECUTE FUNCTION skip();
CREATE TABLE refused (LIKE plain INCLUDING ALL);
CREATE TRIGGER no BEFORE DELETE ON refused EXECUTE FUNCTION refuse();
CREATE TABLE whole (LIKE plain INCLUDING ALL);
CREATE TRIGGER no BEFORE TRUNCATE ON whole EXECUTE FUNCTION refuse();
CREATE TABLE ruled (LIKE plain INCLUDING ALL); CREATE RULE no AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE TABLE never (LIKE plain INCLUDING ALL);
CREATE TRIGGER no BEFORE DELETE OR TRUNCATE ON never EXECUTE FUNCTION refuse(); ALTER TABLE never ENABLE ALWAYS TRIGGER no;
CREATE TABLE hopeless (LIKE plain INCLUDING ALL); CREATE RULE no AS ON DELETE TO hopeless DO INSTEAD NOTHING;
CREATE TRIGGER no BEFORE TRUNCATE ON hopeless EXECUTE FUNCTION refuse(); ALTER TABLE hopeless ENABLE ALWAYS TRIGGER no;
CREATE TABLE kept (LIKE plain INCLUDING ALL); INSERT INTO kept VALUES (1, 'seed'), (2, 'seed');
CREATE TRIGGER no BEFORE DELETE OR UPDATE ON kept FOR EACH ROW WHEN (OLD.k > 2 OR OLD.v <> 'seed') EXECUTE FUNCTION skip()
"""


@pytest.mark.parametrize("superuser", [True, False])
def test_triggers_and_rules_that_keep_rows_keep_none(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn, superuser: bool
) -> None:
    """C7: a DELETE that says that all went well and deleted nothing is no reset. Where neither
    DELETE nor TRUNCATE does what it says, and only there, the clone is replaced."""
    with (
        Server.open(replace(settings), server.dsn if superuser else role) as client,
        cloned(client, settings, tmp_path, SAYING_NO) as clone,
    ):
        truth = fingerprint(server.database(clone.name).url)
        replaced = set()
        for table in ("plain", "skipped", "refused", "whole", "ruled", "never", "hopeless", "kept"):
            name = psycopg.sql.Identifier(table)
            for rows in (3, 3, 30000):
                with clone.isolated("truncate", f"test of {table}") as isolation:
                    new = "INSERT INTO {} SELECT 2 + g, 'new' FROM generate_series(1, {}) AS g"
                    isolation.execute(psycopg.sql.SQL(new).format(name, rows))
                    isolation.execute(
                        psycopg.sql.SQL("UPDATE {} SET v = 'changed' WHERE k = 1").format(name)
                    )
                assert fingerprint(server.database(clone.name).url) == truth, table
            replaced |= (
                {table} if any(f"test of {table}" in note for note in clone.report.notes) else set()
            )
        # In a superuser's control session triggers and rules sleep, unless they are told to be
        # always awake.
        assert replaced == ({"never"} if superuser else {"never", "hopeless", "kept"})


TO_STAY = """
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY); INSERT INTO alembic_version VALUES ('3f2a9c');
CREATE EXTENSION citext;
CREATE TABLE spatial_ref_sys (srid int PRIMARY KEY, proj text); INSERT INTO spatial_ref_sys VALUES (4326, 'WGS 84');
ALTER EXTENSION citext ADD TABLE spatial_ref_sys;
CREATE TABLE mine (v citext)
"""


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])
def test_what_migrations_and_extensions_have_written_is_there_in_every_test(
    server: Server, settings: Settings, tmp_path: Path, reset: str
) -> None:
    """C19: a reset empties nothing that the template has, whoever put it there, and needs no list
    of exceptions."""
    with cloned(server, settings, tmp_path, TO_STAY) as clone:
        truth = fingerprint(clone.url)
        for _ in range(3):
            with clone.isolated(reset, "test") as isolation:
                assert isolation.execute("SELECT version_num FROM alembic_version").fetchall() == [
                    ("3f2a9c",)
                ]
                assert isolation.execute("SELECT srid FROM spatial_ref_sys").fetchall() == [(4326,)]
                isolation.execute("DELETE FROM alembic_version")
                isolation.execute("UPDATE spatial_ref_sys SET proj = 'changed'")
                isolation.execute("INSERT INTO spatial_ref_sys VALUES (1, 'new')")
                isolation.execute("INSERT INTO mine VALUES ('x')")
            assert fingerprint(clone.url) == truth
