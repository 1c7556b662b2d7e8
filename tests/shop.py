"""A schema with everything that makes a reset hard, and clones of it for tests of resets."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template

SCHEMA = """
CREATE TABLE parent (id serial PRIMARY KEY, name text UNIQUE);
CREATE TABLE child (id serial PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE RESTRICT, note text);
CREATE TABLE cascading (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE ring_a (id int PRIMARY KEY, b int);
CREATE TABLE ring_b (id int PRIMARY KEY, a int REFERENCES ring_a DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE ring_a ADD FOREIGN KEY (b) REFERENCES ring_b;
CREATE TABLE tree (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, up int REFERENCES tree ON DELETE RESTRICT);
CREATE TABLE doubled (v int, twice int GENERATED ALWAYS AS (v * 2) STORED);
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (10) TO (100);
CREATE TABLE base (v int); CREATE TABLE heir (w int) INHERITS (base);
CREATE UNLOGGED TABLE fleeting (id serial, v int);
CREATE SCHEMA "Odd.schema {newer} %s"; CREATE TABLE "Odd.schema {newer} %s"."select" (id serial, "a""b" int);
CREATE TABLE audit (id bigserial, what text);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO audit (what) VALUES (TG_OP || ' ' || TG_TABLE_NAME); RETURN coalesce(NEW, OLD); END $$;
CREATE TABLE watched (v int);
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON watched FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE TABLE owner (id int PRIMARY KEY); CREATE TABLE owned (owner int REFERENCES owner ON DELETE SET NULL);
CREATE TRIGGER noted AFTER UPDATE ON owned FOR EACH STATEMENT EXECUTE FUNCTION note_it();
CREATE TABLE always (v int);
CREATE TRIGGER noted AFTER DELETE ON always FOR EACH ROW EXECUTE FUNCTION note_it();
ALTER TABLE always ENABLE ALWAYS TRIGGER noted;
CREATE TABLE ruled (v int); CREATE RULE keep AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE TABLE hidden (v int); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;
CREATE POLICY narrow ON hidden USING (v > 5) WITH CHECK (true);
CREATE TABLE country (code text PRIMARY KEY, name text UNIQUE, shout text GENERATED ALWAYS AS (upper(name)) STORED);
INSERT INTO country VALUES ('de', 'Deutschland'), ('fr', 'France'), ('it', 'Italia');
CREATE TABLE city (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, country text NOT NULL REFERENCES country, name text,
                   at timestamptz DEFAULT '2020-02-02 02:02:02.020202+02', share float8, tags text[], doc jsonb, raw bytea);
INSERT INTO city (country, name, share, tags, doc, raw)
  SELECT c, c || n, 0.1 + n / 3.0, ARRAY['a,b', NULL, '"'], '{"k": [1, null]}', '\\x00ff'
  FROM unnest(ARRAY['de', 'fr']) AS c, generate_series(1, 3) AS n;
CREATE TABLE keyless (v int, w text); INSERT INTO keyless VALUES (1, 'same'), (1, 'same'), (2, NULL);
CREATE MATERIALIZED VIEW totals AS SELECT country, count(*) FROM city GROUP BY 1;
CREATE MATERIALIZED VIEW never AS SELECT 1 AS one WITH NO DATA;
CREATE VIEW shown AS SELECT name FROM city;
CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TYPE pair AS (a int, b int);
CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42';
CREATE SEQUENCE free START 7; CREATE SEQUENCE used; SELECT nextval('used'), nextval('used');
SELECT lo_from_bytea(0, 'template');
"""


@contextlib.contextmanager
def cloned(
    server: Server,
    settings: Settings,
    folder: Path,
    schema: Any = SCHEMA,
    by_callable: bool = False,
    **options: Any,
) -> Iterator[Clone]:
    """Yield a clone of a template, in a project of its own; `options` are settings. The schema is
    SQL, or models or metadata; `by_callable`, SQL is in no file, because it has what a file may not
    have."""

    def build(url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(schema.encode())

    own = replace(settings, name=f"shop{uuid.uuid4().hex[:6]}", root=folder, **options)
    given = schema
    if isinstance(schema, str):
        (folder / "schema.sql").write_text(schema)
        own = replace(own, schema=("schema.sql",))
        given = build if by_callable else None
    server.settings, before = own, server.settings
    try:
        parts, handle = handles.load(own, given)
        with Template.ensure(server, parts, handle).clone("main") as clone:
            yield clone
    finally:
        server.settings = before


def identity(clone: Clone) -> int:
    """Return the oid of the clone's database: another one after it was replaced."""
    ((oid,),) = clone.server.fetch(
        "SELECT oid::int8 FROM pg_database WHERE datname = %s", [clone.name]
    )
    return int(oid)
