"""Random programs of writes against a schema: from up to three connections, in and out of
transactions, with errors, and with what is left open at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter
from psycopg import sql

from .ddl import changes
from .extras import statements
from .schemas import Schema, Table, fill, insert

CONTROL = statements(
    """
BEGIN
BEGIN
BEGIN
COMMIT
COMMIT
COMMIT
ROLLBACK
SAVEPOINT s
ROLLBACK TO s
RELEASE s
SELECT 1/0
BEGIN ISOLATION LEVEL SERIALIZABLE
COMMIT AND CHAIN
SET CONSTRAINTS ALL DEFERRED
BEGIN READ ONLY
PREPARE TRANSACTION 'p'
COMMIT PREPARED 'p'
"""
)
OTHERS = statements(
    """
CREATE TEMP TABLE passing (v int)
INSERT INTO passing VALUES (1)
CALL public.commits()
ANALYZE
VACUUM
VACUUM FULL public.audit
SET session_replication_role = replica
SET row_security = off
SET search_path = ''
SET default_transaction_read_only = on
SELECT pg_advisory_lock(1)
NOTIFY something
LISTEN something
DISCARD ALL
RESET ALL
TRUNCATE public.audit
INSERT INTO public.audit (what) VALUES ('by hand')
UPDATE public.audit SET what = upper(what)
DELETE FROM public.audit
TRUNCATE public.audit RESTART IDENTITY
DELETE FROM public.nothing
INSERT INTO public.nothing DEFAULT VALUES
INSERT INTO public.volatile (v) VALUES ('new')
UPDATE public.volatile SET v = v
TRUNCATE public.volatile
UPDATE public.many SET s = 'changed' WHERE i = 7
DELETE FROM public.many WHERE i < 1500
DECLARE c CURSOR WITH HOLD FOR SELECT * FROM public.audit
DO $$BEGIN PERFORM dblink_connect(''); EXCEPTION WHEN OTHERS THEN INSERT INTO public.audit (what) VALUES ('caught'); END$$
"""
)
POSITIONS = statements(
    """
SELECT nextval('public.free')
SELECT setval('public.free', 40)
SELECT setval('public.free', 7, true)
SELECT setval('public.free', 1, false)
SELECT nextval('public.audit_id_seq')
SELECT setval('public.audit_id_seq', 1, true)
SELECT nextval('public.volatile_id_seq')
SELECT setval('public.volatile_id_seq', 90, false)
SELECT nextval('"Odd.schema"."s""q"')
SELECT setval('"Odd.schema"."s""q"', -9, false)
"""
)
OBJECTS = statements(
    """
SELECT lo_create(0)
SELECT lo_from_bytea(5000, 'new')
SELECT lo_put(5000, 3000, 'more')
SELECT lo_unlink(5000)
SELECT lo_put(50000, 0, 'S')
SELECT lo_put(50000, 9000, 'far')
SELECT lo_unlink(50000)
SELECT lo_from_bytea(50000, 'another')
SELECT lo_truncate(lo_open(50000, 131072), 2)
SELECT lo_put(4712, 0, '')
SELECT lo_unlink(4712)
GRANT ALL ON LARGE OBJECT 50000 TO PUBLIC
REVOKE ALL ON LARGE OBJECT 4712 FROM PUBLIC
COMMENT ON LARGE OBJECT 50000 IS NULL
"""
)
REFRESH = statements(
    """
REFRESH MATERIALIZED VIEW {m}
REFRESH MATERIALIZED VIEW CONCURRENTLY {m}
REFRESH MATERIALIZED VIEW {m} WITH NO DATA
"""
)
WHOLE = statements(
    """
TRUNCATE {t}
TRUNCATE {t} CASCADE
TRUNCATE {t} RESTART IDENTITY CASCADE
TRUNCATE ONLY {t}
TRUNCATE {t}, {o}
LOCK TABLE {t}
LOCK TABLE {t} IN SHARE MODE
SELECT * FROM {t} FOR UPDATE
SELECT count(*) FROM {t}
"""
)
# The first two: a few rows, and so many that a TRUNCATE looks cheaper than a DELETE.
ROWS = statements(
    """
INSERT INTO {t} ({k}) OVERRIDING SYSTEM VALUE SELECT {many} FROM generate_series(1, 20) AS i
INSERT INTO {t} ({k}) OVERRIDING SYSTEM VALUE SELECT {many} FROM generate_series(1, 9000) AS i
INSERT INTO {t} DEFAULT VALUES
UPDATE {t} SET {k} = {k}
UPDATE {t} SET {k} = {far} WHERE {k} = {one}
UPDATE {t} SET {k} = {one} WHERE {k} = {two}
UPDATE {t} SET {k} = NULL
DELETE FROM {t}
DELETE FROM {t} WHERE {k} = {one}
DELETE FROM {t} WHERE {k} <> {one}
DELETE FROM ONLY {t}
"""
)
# What only some schemas have, so that it need not be tried in others.
_PERHAPS = ("public.volatile", "public.many", "public.nothing", "50000", "4712", '"s""q"')


@dataclass(frozen=True)
class Step:
    """A statement on one of three connections. `data`: what is sent to its COPY FROM STDIN; `left`:
    and then the COPY is not ended."""

    connection: int
    statement: str
    data: str | None = None
    left: bool = False

    def __str__(self) -> str:
        return f"{self.connection}: {self.statement}" + (
            f"  <- {self.data!r}{' …' * self.left}" if self.data is not None else ""
        )


@dataclass(frozen=True)
class Program:
    """What one test does. `reset`, how it is undone; `sequences`, those too; `leak`, the third
    connection is a stranger's, who leaves it open."""

    reset: str
    sequences: bool
    leak: bool
    steps: tuple[Step, ...]

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        head = f"{self.reset}{', with sequences' * self.sequences}{', 2 is a stranger' * self.leak}"
        printer.text("\n  ".join([f"Program: {head}", *map(str, self.steps)]) + "\n")


def writes(tables: tuple[Table, ...]) -> Iterator[tuple[str, str | None]]:
    """Yield statements that write to tables, with the data of a COPY."""
    for number, table in enumerate(tables):
        for relation in (table.name, *table.parts):
            yield from ((text, None) for text in _rows(table, relation, tables))
            yield from _copies(table, relation)
        yield from ((fill(text, t=table.name, o=tables[number - 1].name), None) for text in WHOLE)


def _rows(table: Table, relation: sql.Identifier, tables: tuple[Table, ...]) -> Iterator[str]:
    links = {column: tables[goal].value(1) for column, goal in table.references}
    for row in (1, 2, 50):
        values = {column.name: column.values[row % len(column.values)] for column in table.columns}
        yield insert(relation, {table.key: table.value(row), **values, **links})
        yield insert(relation, {table.key: table.value(row + 7), **values})
        if values:
            yield insert(relation, values)
    yield insert(relation, {table.key: table.value(1), **links}, " ON CONFLICT DO NOTHING")
    parts: dict[str, str | sql.Composable] = {"t": relation, "k": table.key}
    parts |= {
        name: sql.SQL(table.value(row)) for name, row in (("one", 1), ("two", 2), ("far", 77))
    }
    many = sql.SQL("'m' || i" if table.kind == "text" else "i + 100")
    yield from (fill(text, many=many, **parts) for text in ROWS)
    for column in table.columns:
        for value in column.values:
            yield fill("UPDATE {t} SET {c} = {v}", t=relation, c=column.name, v=sql.SQL(value))
            yield fill(
                "UPDATE {t} SET {c} = {v} WHERE {k} = {one}",
                c=column.name,
                v=sql.SQL(value),
                **parts,
            )
    for column_name, goal in table.references:
        yield fill("UPDATE {t} SET {c} = NULL", t=relation, c=column_name)
        key = tables[goal].key
        yield fill(
            "UPDATE {t} SET {c} = (SELECT max({g}) FROM {o})",
            t=relation,
            c=column_name,
            g=key,
            o=tables[goal].name,
        )


def _copies(table: Table, relation: sql.Identifier) -> Iterator[tuple[str, str]]:
    text = fill("COPY {t} ({k}) FROM STDIN", t=relation, k=table.key)
    one, two = ("c1", "c2") if table.kind == "text" else ("61", "62")
    yield text, f"{one}\n{two}\n"
    yield text, f"{one}\nnonsense\ttoo many\n"


def pools(schema: Schema, superuser: bool) -> dict[str, list[tuple[str, str | None]]]:
    """Return the statements that programs are made of, by kind."""
    found: dict[str, list[tuple[str, str | None]]] = {"write": list(writes(schema.tables))}
    views = [fill(text, m=name) for name in schema.materialized for text in REFRESH]
    views += [
        fill(text, v=name)
        for name in schema.views
        for text in ("DELETE FROM {v}", "INSERT INTO {v} DEFAULT VALUES")
    ]
    owned = [
        fill(text, s=sql.Literal(table.name.as_string(None)), k=sql.Literal(table.key))
        for table in schema.tables
        if table.kind in ("serial", "always", "by default")
        for text in (
            "SELECT setval(pg_get_serial_sequence({s}, {k}), 50)",
            "SELECT setval(pg_get_serial_sequence({s}, {k}), 1, false)",
            "SELECT setval(pg_get_serial_sequence({s}, {k}), 1, true)",
            "SELECT nextval(pg_get_serial_sequence({s}, {k}))",
        )
    ]
    for kind, texts in {
        "control": [*CONTROL], "other": [*OTHERS], "position": [*POSITIONS, *owned], "object": [*OBJECTS], "view": views,
        "change": list(changes(schema, superuser)),
    }.items():  # fmt: skip
        found[kind] = [
            (text, None)
            for text in texts
            if all(word in schema.text for word in _PERHAPS if word in text)
        ]
    return {kind: texts for kind, texts in found.items() if texts}


CALM = ("write",) * 10 + ("control",) * 6 + ("position",) * 2 + ("other", "view", "view", "object")
WILD = ("write",) * 6 + ("control",) * 5 + ("change",) * 5 + ("position", "other", "view", "object")


@st.composite
def programs(
    draw: st.DrawFn,
    pool: dict[str, list[tuple[str, str | None]]],
    wild: bool = True,
    leaks: bool = True,
    resets: tuple[str, ...] = (),
) -> Program:
    """Draw a program.

    Arguments: `pool`, of `pools`; `wild`, with changes of the schema in some; `leaks`, with
    connections of strangers in some; `resets`, to choose from.
    """
    reset = draw(
        st.sampled_from(resets or ("truncate", "truncate", "truncate", "rollback", "auto"))
    )
    weights = [
        kind for kind in (WILD if wild and draw(st.integers(0, 4)) == 4 else CALM) if kind in pool
    ]
    leak = leaks and draw(st.integers(0, 11)) == 11
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        statement, data = draw(st.sampled_from(pool[draw(st.sampled_from(weights))]))
        connection = draw(st.sampled_from((0, 0, 0, 1, 1, 2)))
        left = data is not None and draw(st.integers(0, 9)) == 9
        steps.append(Step(connection, statement, data, left))
    return Program(reset, draw(st.booleans()), leak, tuple(steps))
