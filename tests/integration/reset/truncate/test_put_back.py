"""What a test committed is put back, by the least means: each kind of write, alone, over
connections of its own.

The same for a superuser, whose control session is one in which most triggers sleep, and for a role
that owns its databases and no more; the oracle shares nothing with the code that resets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from dbclone.clone.clone import Clone
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings

from ....oracle import fingerprint
from ....shop import identity

PUT_BACK = [
    "INSERT INTO owner VALUES (1)",
    "INSERT INTO owner VALUES (1); INSERT INTO owned VALUES (1)",
    "INSERT INTO parent (name) VALUES ('a'), ('b'); INSERT INTO child (parent) SELECT id"
    " FROM parent;"
    " INSERT INTO cascading SELECT id, id FROM parent",
    "INSERT INTO ring_a VALUES (1, NULL); INSERT INTO ring_b VALUES (1, 1); UPDATE ring_a"
    " SET b = 1",
    "INSERT INTO tree (up) VALUES (NULL); INSERT INTO tree (up) SELECT id FROM tree; INSERT"
    " INTO tree (up) SELECT 2",
    "INSERT INTO doubled (v) VALUES (1)",
    "INSERT INTO part VALUES (1, 'low'), (50, 'high')",
    "INSERT INTO part_low VALUES (2, 'direct')",
    "INSERT INTO base VALUES (1); INSERT INTO heir VALUES (2, 3)",
    "INSERT INTO heir VALUES (2, 3)",
    "INSERT INTO fleeting (v) VALUES (1)",
    'INSERT INTO "Odd.schema {newer} %s"."select" ("a""b") VALUES (1)',
    "INSERT INTO watched VALUES (1); UPDATE watched SET v = 2; DELETE FROM watched",
    "INSERT INTO watched VALUES (1)",
    "INSERT INTO always VALUES (1)",
    "INSERT INTO ruled VALUES (1)",
    "INSERT INTO parent (name) SELECT 'n' || g FROM generate_series(1, 30000) AS g",
    "INSERT INTO parent (name) SELECT 'n' || g FROM generate_series(1, 30000) AS g;"
    " INSERT INTO child (parent) SELECT id FROM parent",
    "INSERT INTO audit (what) VALUES ('x'); TRUNCATE audit",
    "UPDATE country SET name = name || '!'",
    "UPDATE country SET name = 'x' WHERE code = 'de'; UPDATE city SET name = 'x' WHERE"
    " country = 'de'",
    "DELETE FROM country WHERE code = 'it'",
    "DELETE FROM city; DELETE FROM country",
    "DELETE FROM city WHERE country = 'fr'; DELETE FROM country WHERE code = 'fr'; INSERT"
    " INTO country VALUES ('fr', 'Frankreich')",
    "INSERT INTO country VALUES ('es', 'España'); INSERT INTO city (country, name) VALUES"
    " ('es', 'Madrid')",
    "UPDATE city SET share = share * 2, tags = NULL, doc = 'null', raw = '' WHERE name = 'de1'",
    "UPDATE city SET country = 'it'",
    "TRUNCATE city",
    "TRUNCATE city, country",
    "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless)",
    "UPDATE keyless SET w = 'other' WHERE w IS NULL; INSERT INTO keyless VALUES (1, 'same')",
    "SELECT nextval('free'), nextval('used'), nextval('parent_id_seq')",
    "SELECT setval('free', 7, true)",
    "SELECT setval('used', 2, false)",
    "SELECT setval('parent_id_seq', 1000); SELECT nextval('fleeting_id_seq')",
    "SELECT lo_from_bytea(0, 'new'), lo_create(0)",
    "INSERT INTO hidden VALUES (1), (9)",
    "SELECT 1",
    "ANALYZE; VACUUM",
    "CREATE TEMP TABLE passing (v int); INSERT INTO passing VALUES (1)",
]
REPLACED = [
    "REFRESH MATERIALIZED VIEW totals",
    "DELETE FROM city; REFRESH MATERIALIZED VIEW totals",
    "REFRESH MATERIALIZED VIEW never",
    "SELECT lo_put(oid, 0, 'changed') FROM pg_largeobject_metadata",
    "SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
    "CREATE TABLE brand_new (v int)",
    "DROP TABLE child",
    "ALTER TABLE child ADD COLUMN extra int",
    "ALTER TABLE child DROP COLUMN note",
    "ALTER TABLE child ALTER COLUMN note SET DEFAULT 'x'",
    "ALTER TABLE child RENAME TO kid",
    "ALTER TABLE city ALTER COLUMN share TYPE float4",
    "ALTER TABLE part ADD COLUMN extra int",
    "ALTER TABLE part DETACH PARTITION part_low",
    "ALTER TABLE ONLY part ALTER COLUMN v SET DEFAULT 'x'",
    "ALTER VIEW shown ALTER COLUMN name SET DEFAULT 'x'",
    "DROP MATERIALIZED VIEW never",
    "CREATE INDEX ON child (note)",
    "ALTER TABLE parent DROP CONSTRAINT parent_name_key",
    "ALTER INDEX child_pkey RENAME TO other_pkey",
    "ALTER INDEX child_pkey SET (fillfactor = 50)",
    "ALTER TABLE watched DISABLE TRIGGER noted",
    "CREATE TRIGGER more AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note_it()",
    "CREATE POLICY wide ON hidden USING (true)",
    "ALTER TABLE hidden NO FORCE ROW LEVEL SECURITY",
    "CREATE OR REPLACE VIEW shown AS SELECT name FROM country",
    "DROP VIEW shown",
    "ALTER VIEW shown RENAME TO displayed",
    "CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 43'",
    "CREATE FUNCTION question() RETURNS int LANGUAGE sql AS 'SELECT 43'",
    "DROP FUNCTION answer()",
    "ALTER TYPE mood ADD VALUE 'ugly'",
    "CREATE TYPE size AS ENUM ('s')",
    "DROP TYPE pair",
    "ALTER TYPE pair ADD ATTRIBUTE c int",
    "ALTER TYPE pair DROP ATTRIBUTE b",
    "ALTER DOMAIN positive ADD CHECK (VALUE < 10)",
    "ALTER DOMAIN positive SET DEFAULT 3",
    "CREATE SCHEMA other",
    'DROP SCHEMA "Odd.schema {newer} %s" CASCADE',
    'ALTER SCHEMA "Odd.schema {newer} %s" RENAME TO even',
    "CREATE EXTENSION {extension}",
    "CREATE SEQUENCE another",
    "ALTER SEQUENCE free INCREMENT 5",
    "DROP SEQUENCE free",
    "ALTER SEQUENCE free RENAME TO bound",
    "GRANT SELECT ON parent TO PUBLIC",
    "GRANT USAGE ON SEQUENCE free TO PUBLIC",
    "GRANT SELECT ON shown TO PUBLIC",
    "REVOKE EXECUTE ON FUNCTION answer() FROM PUBLIC",
    "COMMENT ON TABLE parent IS 'changed'",
    "COMMENT ON COLUMN parent.name IS 'changed'",
    'CREATE COLLATION mine FROM "C"',
    "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
    "CREATE STATISTICS linked ON country, name FROM city",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 100', current_database());"
    " END $$",
]


@pytest.fixture(scope="module", params=["superuser", "plain role"])
def cloning_server(
    request: pytest.FixtureRequest, server: Server, settings: Settings
) -> Iterator[Server]:
    if request.param == "superuser":
        yield server
        return
    server.connection.execute("CREATE ROLE put_back LOGIN CREATEDB")
    with Server.open(replace(settings), Dsn(server.dsn.params).replace(user="put_back")) as plain:
        yield plain


@pytest.fixture(scope="module")
def truth(clone: Clone, server: Server) -> dict[str, str]:
    return fingerprint(seen(clone, server))


def seen(clone: Clone, server: Server) -> str:
    """The clone's URL for the oracle, which must see what policies hide from an owner."""
    return server.database(clone.name).url


def run(url: str, script: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in script.split("; ") if "$$" not in script else [script]:
            connection.execute(
                statement.replace(
                    "{extension}", "pgcrypto" if "pgcrypto" in _EXTENSIONS else "citext"
                ).encode()
            )


_EXTENSIONS: set[str] = set()


@pytest.fixture(autouse=True)
def _extensions(server: Server) -> None:
    _EXTENSIONS.update(
        name for (name,) in server.fetch("SELECT name::text FROM pg_available_extensions")
    )


@pytest.mark.parametrize("script", PUT_BACK)
def test_it_is_put_back_in_place(
    clone: Clone, server: Server, truth: dict[str, str], script: str
) -> None:
    """C6 (policies), C7 (rules), C8 (children), C9 (cycles), C10 (sequences), C11 (generated), C13
    (large objects), C18 (names).

    The database stays the same one, and equals its template: twice, because the second time it is
    guessed."""
    before = identity(clone)
    for _ in range(3):
        with clone.isolated("truncate", "writer"):
            run(clone.url, script)
        assert fingerprint(seen(clone, server)) == truth
    assert identity(clone) == before, clone.report.notes


@pytest.mark.parametrize("script", REPLACED)
def test_it_costs_a_fresh_clone(
    clone: Clone, server: Server, truth: dict[str, str], script: str
) -> None:
    """C12 (materialized views), C15 (DDL). The database is another one, equals its template, and
    the report names the test."""
    before = identity(clone)
    clone.report.notes.clear()
    with clone.isolated("truncate", f"test of {script}"):
        run(clone.url, script)
    assert fingerprint(seen(clone, server)) == truth
    assert identity(clone) != before
    assert f"test of {script}" in clone.report.notes[0]
