"""What a reset needs to know of a schema, asked once a clone: tables, foreign keys, what was in them, where sequences stood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

# Partitions and inheritance children are tables of their own here, and parents with storage too; each is emptied ONLY by itself, so
# that a partition which is a foreign table, and with it another server, is out of reach.
_TABLES = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, pg_relation_size(c.oid) > 0,
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 8 <> 0),
       EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_type = '4'),
       c.relrowsecurity AND c.relforcerowsecurity
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
ORDER BY n.nspname, c.relname
"""
_KEYS = "SELECT conrelid::int8, confrelid::int8 FROM pg_constraint WHERE contype = 'f'"
_SEQUENCES = """
SELECT c.oid::int8, s.seqstart, pg_sequence_last_value(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
WHERE c.relpersistence <> 't' AND n.nspname !~ '^pg_(toast|temp)'
"""
_MOVED = """
SELECT pg_catalog.setval(v.oid::oid::regclass, v.last, v.called)
FROM unnest(%s::int8[], %s::int8[], %s::bool[]) AS v (oid, last, called)
WHERE pg_catalog.pg_sequence_last_value(v.oid::oid) IS DISTINCT FROM CASE WHEN v.called THEN v.last END
"""


@dataclass(frozen=True)
class Table:
    """An ordinary table, partition or inheritance child.

    `seeded`: it has rows in the template. `stubborn`: a plain DELETE may not empty it, or may do more than that (user DELETE
    triggers, DELETE rules, forced row-level security).
    """

    oid: int
    schema: str
    name: str
    seeded: bool
    stubborn: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class Sequences:
    """Where every sequence stood in the template: parallel lists of oid, position, and whether that position has been used."""

    oids: list[int]
    positions: list[int]
    called: list[bool]

    @classmethod
    def ask(cls, connection: psycopg.Connection[Any]) -> Sequences:
        """Read the positions, before anything has moved a sequence."""
        rows = connection.cursor(row_factory=psycopg.rows.tuple_row).execute(_SEQUENCES).fetchall()
        return cls(
            [row[0] for row in rows], [row[1] if row[2] is None else row[2] for row in rows], [row[2] is not None for row in rows]
        )

    def restore(self, connection: psycopg.Connection[Any]) -> None:
        """Put back the sequences that have moved, in one round trip."""
        if self.oids:
            connection.execute(_MOVED, [self.oids, self.positions, self.called], prepare=True)


@dataclass(frozen=True)
class Facts:
    """A schema as a reset sees it. `references` holds (referencing table, referenced table) by oid."""

    tables: list[Table]
    references: set[tuple[int, int]]
    sequences: Sequences
    by_oid: dict[int, Table] = field(default_factory=dict)

    @classmethod
    def ask(cls, connection: psycopg.Connection[Any], sequences: Sequences | None = None) -> Facts:
        """Read the facts of a database that is equal to its template.

        Arguments: `sequences`, if their positions were asked earlier: rollbacks move them, and leave all other facts as they were.
        """
        with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
            rows = cursor.execute(_TABLES).fetchall()
            filled = _filled(cursor, [row for row in rows if row[3]])
            tables = [Table(row[0], row[1], row[2], row[0] in filled, any(row[4:])) for row in rows]
            references = {(child, parent) for child, parent in cursor.execute(_KEYS)}
        return cls(tables, references, sequences or Sequences.ask(connection), {table.oid: table for table in tables})


def _filled(cursor: psycopg.Cursor[Any], rows: list[Any]) -> set[int]:
    """Return the oids of those tables that have rows: storage alone may be what rolled-back rows left."""
    if not rows:
        return set()
    parts = [
        sql.SQL("SELECT {}::int8 WHERE EXISTS (SELECT FROM ONLY {})").format(row[0], sql.Identifier(row[1], row[2])) for row in rows
    ]
    return {oid for (oid,) in cursor.execute(sql.SQL(" UNION ALL ").join(parts))}
