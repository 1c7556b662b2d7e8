"""What a database can have besides tables: it is in every clone, and no reset trips over it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.databases import ddl
from dbclone.errors import PermissionMissing
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ...oracle import differences, fingerprint
from ...shop import cloned

FORGOTTEN = """
CREATE TABLE item (id serial PRIMARY KEY, name text);
INSERT INTO item (name) VALUES ('a'), ('b');
SELECT setval('item_id_seq', 41);
CREATE PUBLICATION news FOR TABLE item;
SELECT lo_from_bytea(0, 'template');
CREATE MATERIALIZED VIEW names AS SELECT name FROM item;
INSERT INTO item (name) VALUES ('c');
CREATE FUNCTION frozen() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the schema is frozen: %', tg_tag; END $$;
CREATE EVENT TRIGGER frozen ON ddl_command_start EXECUTE FUNCTION frozen();
"""


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_what_people_forget_is_copied_and_no_reset_makes_objects(
    reset: str, server: Server, settings: Settings, tmp_path: Path
) -> None:
    """B16: publication, large object, sequence position, materialized rows, and an event trigger
    that forbids all DDL."""
    with cloned(server, settings, tmp_path, FORGOTTEN) as clone:
        with clone.connect() as connection:
            for query, expected in {
                "SELECT last_value FROM item_id_seq": 42,
                "SELECT count(*) FROM names": 2,
                "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'news'": 1,
                "SELECT convert_from(lo_get(oid), 'utf8') FROM pg_largeobject_metadata": "template",
                "SELECT evtname::text FROM pg_event_trigger": "frozen",
            }.items():
                assert connection.execute(query.encode()).fetchall() == [(expected,)], query
        truth = fingerprint(clone.url)
        for _ in range(2):
            with clone.isolated(reset, "test", reset_sequences=True) as isolation:
                isolation.execute("INSERT INTO item (name) VALUES ('d')")
                isolation.execute("SELECT lo_from_bytea(0, 'test')")
                with pytest.raises(psycopg.errors.RaiseException, match="the schema is frozen"):
                    isolation.execute("CREATE TABLE more ()")
        with clone.isolated("truncate", "next"):
            assert differences(truth, fingerprint(clone.url)) == ""
        if reset in ("rollback", "truncate"):
            assert clone.report.notes == []


LOGIN = """
CREATE TABLE item (id int);
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN IF current_setting('application_name') ~ '^dbclone .*:[0-9]+$' THEN RAISE EXCEPTION 'no entry'; END IF; END $$;
CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def modern(server: Server) -> Server:
    if server.facts.major < 17:
        pytest.skip("login event triggers exist since PostgreSQL 17")
    return server


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_a_login_trigger_that_refuses_everybody_does_not_refuse_dbclone(
    reset: str, modern: Server, settings: Settings, tmp_path: Path
) -> None:
    """B17: where it may, dbclone connects without event triggers."""
    with cloned(modern, settings, tmp_path, LOGIN) as clone:
        with pytest.raises(psycopg.OperationalError, match="no entry"):
            psycopg.connect(clone.url, application_name="dbclone of somebody:1")
        for _ in range(2):
            with clone.isolated(reset, "test") as isolation:
                assert isolation.execute("SELECT count(*) FROM item").fetchone() == (0,)
                isolation.execute("INSERT INTO item VALUES (1)")


def test_a_role_that_a_login_trigger_refuses_is_told_what_would_let_it_in(
    modern: Server, role: Dsn, tmp_path: Path
) -> None:
    """B17: the trigger is in the maintenance database, and so not one of the project's."""
    ours = str(role.get("user"))
    run = modern.connection.execute
    body = f"BEGIN IF session_user = '{ours}' THEN RAISE EXCEPTION 'no entry'; END IF; END"
    run(
        (
            f"CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
            f" '{body.replace(chr(39), chr(39) * 2)}'"
        ).encode()
    )
    run("CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION refuse()")
    try:
        plain = load(tmp_path, {"url": role.url}, {})
        with pytest.raises(
            PermissionMissing, match="a login event trigger refuses us in database 'postgres'"
        ) as caught:
            Server.open(plain)
        assert "no entry" in caught.value.detail
        statement = f'GRANT SET ON PARAMETER event_triggers TO "{ours}";'
        assert statement in caught.value.hint
        run(statement.encode())
        with Server.open(plain) as opened:
            assert opened.facts.role == ours
        run(f'REVOKE SET ON PARAMETER event_triggers FROM "{ours}"'.encode())
    finally:
        run("DROP EVENT TRIGGER refuse")
        run("DROP FUNCTION refuse()")


@pytest.fixture
def tablespace(server: Server) -> Iterator[str]:
    """A tablespace; what is in it at the end is dropped."""
    if server.facts.major < 15:
        pytest.skip("a tablespace inside the data directory can be made since PostgreSQL 15")
    name = f"elsewhere_{uuid.uuid4().hex[:8]}"
    with server.connect("postgres", "test", "-c allow_in_place_tablespaces=on") as connection:
        connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION ''").format(sql.Identifier(name)))
    yield name
    server.connection.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("strategy", ["file_copy", "wal_log"])
def test_tables_in_another_tablespace_are_copied_and_reset(
    strategy: str, server: Server, settings: Settings, tmp_path: Path, tablespace: str
) -> None:
    """B22."""
    schema = f"CREATE TABLE item (id) TABLESPACE {tablespace} AS VALUES (1);"
    query = "SELECT t.spcname::text FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE c.relname = 'item'"
    with cloned(server, settings, tmp_path, schema, clone_strategy=strategy) as clone:
        for reset in ("rollback", "truncate", "clone", "drop", "truncate"):
            with clone.isolated(reset, "test") as isolation:
                assert isolation.execute(query).fetchone() == (tablespace,)
                assert isolation.execute("SELECT array_agg(id) FROM item").fetchone() == ([1],)
                isolation.execute("INSERT INTO item VALUES (2)")
    ddl.drop(server, clone.template)
