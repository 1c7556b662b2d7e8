"""What a schema may have besides its tables, and what one table may have besides its columns: all
that acts by itself."""

from __future__ import annotations

import re


def statements(text: str) -> tuple[str, ...]:
    """Return the statements of a text that has one on each line; lines that begin with a space go
    on with the one before."""
    return tuple(re.split(r"\n(?! )", text.strip()))


# What every schema has for the others to use. The functions are a trigger's.
SUPPORT = r"""
CREATE TYPE public.mood AS ENUM ('good', 'so ''so''', 'bad'); CREATE DOMAIN public.positive AS int DEFAULT 1 CHECK (VALUE > 0);
CREATE TYPE public.pair AS (a int, b text);
CREATE TABLE public.audit (id bigserial, what text);
CREATE FUNCTION public.note_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.audit (what) VALUES (TG_OP || ' ' || TG_RELID::regclass); RETURN coalesce(NEW, OLD); END $$;
CREATE FUNCTION public.skip_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION public.refuse_it() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no'; END$$;
CREATE PROCEDURE public.commits() LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.audit (what) VALUES ('kept'); COMMIT; INSERT INTO public.audit (what) VALUES ('not'); ROLLBACK; END $$
"""
# What one table may have more. {t} is its name, {n} a name, {k} the key, {c} a column that can be
# anything.
EARLY = statements(
    """
ALTER TABLE {t} ADD COLUMN gone int; ALTER TABLE {t} DROP COLUMN gone
ALTER TABLE {t} ADD COLUMN twice bigint GENERATED ALWAYS AS (length({k}::text) * 2) STORED
ALTER TABLE {t} ADD COLUMN stamp timestamptz DEFAULT clock_timestamp(), ADD COLUMN chance float8 DEFAULT random()
ALTER TABLE {t} ADD COLUMN number int DEFAULT nextval('public.free')
CREATE TRIGGER {n} AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.note_it()
CREATE TRIGGER {n} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {t} EXECUTE FUNCTION public.note_it()
CREATE TRIGGER {n} BEFORE INSERT OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.note_it(); ALTER TABLE {t} ENABLE ALWAYS
  TRIGGER {n}
CREATE TRIGGER {n} AFTER UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.note_it(); ALTER TABLE {t} ENABLE REPLICA
  TRIGGER {n}
CREATE CONSTRAINT TRIGGER {n} AFTER INSERT OR DELETE ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION
  public.note_it()
CREATE RULE {n} AS ON INSERT TO {t} DO ALSO INSERT INTO public.audit (what) VALUES ('rule')
CREATE RULE {n} AS ON DELETE TO {t} DO ALSO INSERT INTO public.audit (what) VALUES ('rule')
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY {n} ON {t} USING (length({k}::text) > 1) WITH
  CHECK (true)
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY {n} ON {t} USING (true)
CREATE INDEX {n} ON {t} ({k}, (1)) WHERE {c} IS NOT NULL
CREATE VIEW {v} AS SELECT * FROM {t} WHERE {k} IS NOT NULL WITH CHECK OPTION
"""
)
# The same for what comes after the seeds.
LATE = statements(
    """
ALTER TABLE {t} ADD COLUMN late int DEFAULT 7
CREATE TRIGGER {n} BEFORE DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.skip_it()
CREATE TRIGGER {n} BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION public.skip_it()
CREATE TRIGGER {n} BEFORE INSERT ON {t} FOR EACH ROW WHEN (random() < 0.5) EXECUTE FUNCTION public.skip_it()
CREATE TRIGGER {n} BEFORE DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.refuse_it()
CREATE TRIGGER {n} BEFORE TRUNCATE ON {t} EXECUTE FUNCTION public.refuse_it()
CREATE TRIGGER {n} BEFORE DELETE OR TRUNCATE ON {t} EXECUTE FUNCTION public.refuse_it(); ALTER TABLE {t} ENABLE ALWAYS TRIGGER {n}
CREATE RULE {n} AS ON DELETE TO {t} DO INSTEAD NOTHING
CREATE RULE {n} AS ON UPDATE TO {t} WHERE random() < 0.5 DO INSTEAD NOTHING
CREATE RULE {n} AS ON INSERT TO {t} DO INSTEAD INSERT INTO public.audit (what) VALUES ('instead')
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY {n} ON {t} FOR SELECT USING (true)
CREATE MATERIALIZED VIEW {m} AS SELECT count(*) AS n, min({c}::text) AS low FROM {t}
CREATE MATERIALIZED VIEW {m} AS SELECT {k} AS k, {c} AS c FROM {t}; CREATE UNIQUE INDEX ON {m} (k)
CREATE MATERIALIZED VIEW {m} AS SELECT * FROM {t} WITH NO DATA
GRANT SELECT, INSERT ({k}) ON {t} TO PUBLIC; COMMENT ON COLUMN {t}.{k} IS 'it''s'
ALTER TABLE {t} ADD CONSTRAINT {n} CHECK ({k}::text <> 'never') NOT VALID
ALTER TABLE {t} REPLICA IDENTITY FULL
"""
)
# What a schema may have besides tables.
WIDER = statements(
    r"""
CREATE SEQUENCE "Odd.schema"."s""q" AS smallint INCREMENT -3 MINVALUE -300 CYCLE; SELECT nextval('"Odd.schema"."s""q"')
SELECT setval('public.free', 30, false)
CREATE UNLOGGED TABLE public.volatile (id serial, v text); INSERT INTO public.volatile (v) VALUES ('kept')
CREATE TABLE public.nothing (); INSERT INTO public.nothing DEFAULT VALUES
SELECT lo_from_bytea(50000, '\x736565640001'); COMMENT ON LARGE OBJECT 50000 IS 'seed'
SELECT lo_create(4712), lo_put(4712, 5000, '\xff'); GRANT SELECT ON LARGE OBJECT 4712 TO PUBLIC
INSERT INTO public.audit (what) SELECT 'old ' || i FROM generate_series(1, 300) AS i
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET extra_float_digits = -10', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET datestyle = ''German''', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET standard_conforming_strings = off', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = "Odd.schema", pg_catalog', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END$$
DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET intervalstyle = sql_standard', current_database()); END$$
CREATE TABLE public.many AS SELECT i, repeat('x', 50) AS s FROM generate_series(1, 2000) AS i
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC
CREATE AGGREGATE public.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0')
"""
)
