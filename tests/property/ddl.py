"""Statements that change a schema: every kind of object made, altered and dropped."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from .extras import statements
from .schemas import Schema, fill

# {t} is a table, {o} another, {p} a part of it, {k} its key, {c} a column.
TABLE = statements(
    """
ALTER TABLE {t} ADD COLUMN added int
ALTER TABLE {t} ADD COLUMN added int DEFAULT 5
ALTER TABLE {t} DROP COLUMN {c} CASCADE
ALTER TABLE {t} DROP COLUMN {k} CASCADE
ALTER TABLE {t} RENAME COLUMN {c} TO renamed
ALTER TABLE {t} RENAME TO renamed
ALTER TABLE {t} SET SCHEMA public
ALTER TABLE {t} SET SCHEMA "select"
ALTER TABLE {t} ALTER {c} TYPE text USING {c}::text
ALTER TABLE {t} ALTER {k} TYPE bigint
ALTER TABLE {t} ALTER {c} SET NOT NULL
ALTER TABLE {t} ALTER {c} SET DEFAULT NULL
ALTER TABLE {t} ALTER {k} DROP DEFAULT
ALTER TABLE {t} ALTER {k} DROP IDENTITY
ALTER TABLE {t} ALTER {k} SET GENERATED ALWAYS
ALTER TABLE {t} ALTER {k} RESTART WITH 5
ALTER TABLE {t} ALTER {k} SET STATISTICS 7
ALTER TABLE {t} ALTER {c} SET STORAGE EXTERNAL
ALTER TABLE {t} ALTER {c} SET (n_distinct = 5)
ALTER TABLE {t} SET (fillfactor = 50)
ALTER TABLE {t} SET UNLOGGED
ALTER TABLE {t} SET LOGGED
ALTER TABLE {t} ADD CHECK ({k} IS NOT NULL) NOT VALID
ALTER TABLE {t} ADD CONSTRAINT added UNIQUE ({k})
ALTER TABLE {t} DROP CONSTRAINT added
ALTER TABLE {t} REPLICA IDENTITY NOTHING
ALTER TABLE {t} DISABLE TRIGGER ALL
ALTER TABLE {t} DISABLE TRIGGER USER
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY
ALTER TABLE {t} NO FORCE ROW LEVEL SECURITY
ALTER TABLE {t} DISABLE ROW LEVEL SECURITY
ALTER TABLE {t} OWNER TO pg_monitor
ALTER TABLE {t} CLUSTER ON added
ALTER TABLE {t} DETACH PARTITION {p}
ALTER TABLE {t} ADD FOREIGN KEY ({k}) REFERENCES {o}
ALTER TABLE {p} NO INHERIT {t}
ALTER TABLE {o} INHERIT {t}
CREATE TABLE {p} PARTITION OF {t} DEFAULT
CREATE TABLE heir_added (more int) INHERITS ({t})
CREATE TABLE copied (LIKE {t} INCLUDING ALL)
CREATE TABLE copied AS SELECT * FROM {t}
DROP TABLE {t}
DROP TABLE {t} CASCADE
DROP TABLE {p}
CREATE INDEX ON {t} ({k})
CREATE UNIQUE INDEX added ON {t} ({k})
CREATE INDEX CONCURRENTLY late_added ON {t} ({k})
REINDEX TABLE {t}
DROP INDEX CONCURRENTLY late_added
CREATE TRIGGER added BEFORE DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.skip_it()
DROP TRIGGER added ON {t}
CREATE TRIGGER added BEFORE INSERT ON {t} EXECUTE FUNCTION public.refuse_it()
DROP RULE added ON {t}
ALTER TABLE {t} ENABLE ALWAYS TRIGGER added
CREATE RULE added AS ON DELETE TO {t} DO INSTEAD NOTHING
CREATE POLICY added ON {t} USING (false)
DROP POLICY added ON {t}
CREATE STATISTICS added ON {k}, {c} FROM {t}
CREATE VIEW seen AS SELECT * FROM {t}
CREATE MATERIALIZED VIEW frozen AS SELECT * FROM {t}
DROP STATISTICS added
GRANT SELECT ON {t} TO PUBLIC
GRANT UPDATE ({k}) ON {t} TO pg_monitor
REVOKE ALL ON {t} FROM PUBLIC
REVOKE INSERT ON {t} FROM current_user
COMMENT ON TABLE {t} IS 'changed'
COMMENT ON COLUMN {t}.{k} IS 'changed'
COMMENT ON COLUMN {t}.{k} IS NULL
VACUUM FULL {t}
CREATE PUBLICATION added FOR TABLE {t}
"""
)
SCHEMA = statements(
    """
CREATE TABLE public.added (id serial PRIMARY KEY, v text)
INSERT INTO public.added (v) VALUES ('new')
DROP TABLE public.added
CREATE TABLE public.parted (i int) PARTITION BY LIST (i)
CREATE UNLOGGED TABLE public.nolog (v int)
CREATE TABLE public.empty ()
CREATE SCHEMA added
CREATE TABLE added.inside (v int)
DROP SCHEMA added CASCADE
DROP SCHEMA "Odd.schema" CASCADE
ALTER SCHEMA "Odd.schema" RENAME TO "other"
GRANT ALL ON SCHEMA public TO PUBLIC
GRANT USAGE ON SCHEMA "select" TO pg_monitor
COMMENT ON SCHEMA "select" IS 'changed'
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO PUBLIC
ALTER TYPE public.mood ADD VALUE 'new'
ALTER TYPE public.mood ADD VALUE 'first' BEFORE 'good'
ALTER TYPE public.mood RENAME VALUE 'bad' TO 'worse'
ALTER TYPE public.mood RENAME TO moods
ALTER TYPE public.pair ADD ATTRIBUTE c int
ALTER TYPE public.pair RENAME ATTRIBUTE a TO z CASCADE
DROP TYPE public.mood CASCADE
DROP DOMAIN public.positive CASCADE
ALTER DOMAIN public.positive DROP CONSTRAINT positive_check
ALTER DOMAIN public.positive SET DEFAULT 2
ALTER DOMAIN public.positive SET NOT NULL
ALTER DOMAIN public.positive ADD CHECK (VALUE < 100)
CREATE TYPE public.kind AS ENUM ('a')
CREATE TYPE public.span AS RANGE (subtype = int)
CREATE DOMAIN public.short AS text CHECK (length(VALUE) < 9)
COMMENT ON TYPE public.mood IS 'changed'
GRANT USAGE ON TYPE public.mood TO pg_monitor
CREATE OR REPLACE FUNCTION public.note_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN coalesce(NEW, OLD); END'
ALTER FUNCTION public.note_it() SET search_path = public
ALTER FUNCTION public.note_it() SECURITY DEFINER COST 7
DROP FUNCTION public.note_it() CASCADE
DROP PROCEDURE public.commits()
CREATE FUNCTION public.one() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE OR REPLACE FUNCTION public.one() RETURNS int LANGUAGE sql AS 'SELECT 2'
REVOKE ALL ON FUNCTION public.note_it() FROM PUBLIC
CREATE AGGREGATE public.summed(int) (SFUNC = int4pl, STYPE = int)
DROP AGGREGATE public.total(int)
CREATE OPERATOR public.|+| (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int)
CREATE CAST (public.pair AS text) WITH INOUT
CREATE COLLATION public.plain FROM "C"
CREATE TEXT SEARCH CONFIGURATION public.words (COPY = simple)
CREATE EXTENSION citext
DROP EXTENSION plpgsql CASCADE
CREATE SEQUENCE public.another
DROP SEQUENCE public.free CASCADE
ALTER SEQUENCE public.free INCREMENT 5
ALTER SEQUENCE public.free RESTART
ALTER SEQUENCE public.free RESTART WITH 7
ALTER SEQUENCE public.free OWNED BY public.audit.id
ALTER SEQUENCE public.free RENAME TO freed
ALTER SEQUENCE public.audit_id_seq MAXVALUE 1000
ALTER SEQUENCE public.audit_id_seq OWNED BY NONE
GRANT USAGE ON SEQUENCE public.free TO PUBLIC
COMMENT ON SEQUENCE public.free IS 'changed'
ALTER TABLE public.audit ADD COLUMN added int
ALTER TABLE public.audit ALTER id DROP DEFAULT
DROP TABLE public.audit
ALTER TABLE public.volatile SET LOGGED
DROP TABLE public.nothing
DROP TABLE public.audit CASCADE; CREATE TABLE public.audit (id bigserial, what text)
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''5MB''', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET work_mem = ''5MB''', current_database()); END$$
DO $$BEGIN EXECUTE format('GRANT TEMP ON DATABASE %I TO pg_monitor', current_database()); END$$
DO $$BEGIN EXECUTE format('COMMENT ON DATABASE %I IS NULL', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 50', current_database()); END$$
"""
)
SUPERUSER = statements(
    """
CREATE FUNCTION public.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'
CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION public.on_ddl()
CREATE PUBLICATION everything FOR ALL TABLES
CREATE FOREIGN DATA WRAPPER wrapped
CREATE SERVER far FOREIGN DATA WRAPPER wrapped
CREATE FOREIGN TABLE public.foreign_one (v int) SERVER far
CREATE ACCESS METHOD heap_too TYPE TABLE HANDLER heap_tableam_handler
ALTER SCHEMA "select" OWNER TO pg_monitor
ALTER TYPE public.mood OWNER TO pg_monitor
ALTER FUNCTION public.note_it() OWNER TO pg_monitor
CREATE EXTENSION hstore
ALTER LARGE OBJECT 50000 OWNER TO pg_monitor
GRANT USAGE ON LANGUAGE plpgsql TO pg_monitor
"""
)


def changes(schema: Schema, superuser: bool) -> Iterator[str]:
    """Yield statements that change a schema. Many of them fail, as they do in life."""
    for number, table in enumerate(schema.tables):
        column = table.columns[0].name if table.columns else table.key
        part = table.parts[0] if table.parts else sql.Identifier("public", "fresh")
        for text in TABLE:
            yield fill(
                text, t=table.name, o=schema.tables[number - 1].name, p=part, k=table.key, c=column
            )
    yield from SCHEMA
    yield from (
        fill(text, v=view)
        for view in schema.views
        for text in ("DROP VIEW {v}", "CREATE OR REPLACE VIEW {v} AS SELECT 1 AS one")
    )
    yield from (
        fill(text, m=view)
        for view in schema.materialized
        for text in ("DROP MATERIALIZED VIEW {m}", "ALTER MATERIALIZED VIEW {m} RENAME TO old")
    )
    if superuser:
        yield from SUPERUSER
