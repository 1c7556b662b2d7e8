"""The promise that matters most: after any writes, a reset database is equal to its template, or is
replaced by one that is.

Random programs of writes, commits, rollbacks and errors, from the application's connection and,
under truncate, from a second one, against a schema that has what makes resets hard.
"""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dbclone.clone.clone import Clone

from ..oracle import fingerprint

SCHEMA = """
CREATE TABLE parent (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE child (id serial PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE RESTRICT, note text);
CREATE TABLE ring_a (id int PRIMARY KEY, b int);
CREATE TABLE ring_b (id int PRIMARY KEY, a int REFERENCES ring_a DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE ring_a ADD FOREIGN KEY (b) REFERENCES ring_b DEFERRABLE;
CREATE TABLE tree (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, up int REFERENCES tree);
CREATE TABLE audit (id bigserial, what text);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO audit (what) VALUES (TG_OP || ' ' || TG_TABLE_NAME); RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON parent FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (10) TO (100);
CREATE TABLE base (v int); CREATE TABLE heir (w int) INHERITS (base);
CREATE UNLOGGED TABLE scratchy (v int);
CREATE SCHEMA "Odd.schema"; CREATE TABLE "Odd.schema"."select" (id serial, "a""b" int);
CREATE TABLE seeded (id serial PRIMARY KEY, v text, parent int REFERENCES parent);
INSERT INTO seeded (v) VALUES ('one'), ('two'), ('three');
CREATE TABLE hidden (v int); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;
CREATE POLICY narrow ON hidden USING (v > 5) WITH CHECK (true);
CREATE SEQUENCE free START 7;
"""

pytestmark = [pytest.mark.clone_of(schema=SCHEMA), pytest.mark.slow]
WRITES = [
    "INSERT INTO parent (name) VALUES ('n' || (random() * 1000)::int)",
    "INSERT INTO child (parent) SELECT id FROM parent LIMIT 3",
    "INSERT INTO child (parent) VALUES (-1)",
    "WITH a AS (INSERT INTO ring_a VALUES (1, NULL) RETURNING id) INSERT INTO ring_b SELECT"
    " 1, id FROM a",
    "UPDATE ring_a SET b = 1",
    "INSERT INTO tree (up) VALUES (NULL)",
    "INSERT INTO tree (up) SELECT max(id) FROM tree",
    "INSERT INTO part VALUES (1, 'low'), (50, 'high')",
    "INSERT INTO part_low VALUES (2, 'direct')",
    "INSERT INTO base VALUES (1)",
    "INSERT INTO heir VALUES (1, 2)",
    "INSERT INTO scratchy VALUES (1)",
    'INSERT INTO "Odd.schema"."select" ("a""b") VALUES (1)',
    "UPDATE seeded SET v = v || '!' WHERE id = 1",
    "DELETE FROM seeded WHERE id = 2",
    "INSERT INTO seeded (v) VALUES ('four')",
    "INSERT INTO hidden VALUES (1), (9)",
    "DELETE FROM parent",
    "TRUNCATE audit",
    "SELECT nextval('free')",
    "SELECT setval('seeded_id_seq', 40)",
    "SELECT 1/0",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
]
PROGRAMS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(WRITES)), max_size=14)


@pytest.fixture(scope="module")
def truth(clone: Clone) -> dict[str, str]:
    return fingerprint(clone.url)


def run(connections: list[psycopg.Connection[object]], program: list[tuple[int, str]]) -> None:
    """Run a program as a careless application would: what fails has failed, and blocks may stay
    open."""
    for connection in connections:
        connection.execute("SET lock_timeout = '50ms'")
    for number, statement in program:
        with contextlib.suppress(psycopg.Error):
            connections[number % len(connections)].execute(statement.encode())


@examples(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=PROGRAMS, sequences=st.booleans())
def test_after_a_rollback(
    clone: Clone, truth: dict[str, str], program: list[tuple[int, str]], sequences: bool
) -> None:
    with clone.isolated("rollback", "property", reset_sequences=sequences) as isolation:
        run([isolation.connect(autocommit=True)], program)
    if sequences:
        assert fingerprint(clone.url) == truth
    else:
        rows = {k: v for k, v in truth.items() if not k.startswith("sequence ")}
        assert fingerprint(clone.url, sequences=False) == rows


@examples(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=PROGRAMS)
def test_after_a_truncate(
    clone: Clone, truth: dict[str, str], program: list[tuple[int, str]]
) -> None:
    with clone.isolated("truncate", "property") as isolation:
        run([isolation.connect(autocommit=True), isolation.connect(autocommit=True)], program)
    assert fingerprint(clone.url) == truth
