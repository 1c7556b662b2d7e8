"""Where sequences stood in the template, and how to tell and undo that they have moved.

A rollback does not move a sequence back (PostgreSQL documentation, functions-sequence), and a
table's rows say nothing of one: a failed INSERT takes a number too. So positions are read, both
parts of them: last_value and is_called.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

# Asked over the application's own session too, whose search_path may lead anywhere.
_SEQUENCES = """
SELECT c.oid::int8, n.nspname::text, c.relname::text,
       coalesce((SELECT d.refobjid::int8 FROM pg_catalog.pg_depend d
                 WHERE d.classid = 1259 AND d.objid = c.oid
                 AND d.refclassid = 1259 AND d.deptype IN ('a', 'i') LIMIT 1), 0),
       c.relpersistence = 'p'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_(toast|temp)'
      AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
      AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')
ORDER BY c.oid
"""


@dataclass(frozen=True)
class Sequence:
    """A sequence and its position in the template: `last`, and whether that number has been given
    out (`called`)."""

    oid: int
    schema: str
    name: str
    owner: int  # oid of the table that it belongs to, or 0
    logged: bool
    last: int
    called: bool

    @property
    def moved(self) -> sql.Composed:
        """A query with one row, `-oid` as text, if the sequence stands elsewhere now."""
        return sql.SQL("SELECT {} FROM {} WHERE last_value <> {} OR is_called <> {}").format(
            str(-self.oid), sql.Identifier(self.schema, self.name), self.last, self.called
        )


def put_back(chosen: Iterable[Sequence]) -> sql.Composed:
    """Return a statement that puts sequences where they were, by oid, so that no name has to be
    looked up."""
    rows = sql.SQL(", ").join(
        sql.SQL("({}, {}, {})").format(s.oid, s.last, s.called) for s in chosen
    )
    return sql.SQL(
        "SELECT count(pg_catalog.setval(o::oid::regclass, l, c)) FROM (VALUES {}) AS v (o, l, c)"
    ).format(rows)


def ask(connection: psycopg.Connection[Any]) -> tuple[Sequence, ...]:
    """Read the positions of all sequences of a database that is equal to its template."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute(_SEQUENCES).fetchall()
        if not found:
            return ()
        parts = [
            sql.SQL("SELECT {}::int8, last_value, is_called FROM {}").format(
                oid, sql.Identifier(schema, name)
            )
            for oid, schema, name, *_ in found
        ]
        positions = {
            oid: (last, called)
            for oid, last, called in cursor.execute(sql.SQL(" UNION ALL ").join(parts))
        }
    return tuple(
        Sequence(oid, schema, name, owner, logged, *positions[oid])
        for oid, schema, name, owner, logged in found
    )


def restore(
    connection: psycopg.Connection[Any], sequences: Iterable[Sequence], used: bool = False
) -> None:
    """Put back the sequences that have moved, in two round trips, or one if none has.

    Arguments: `used`, also those that stand where they should on a number that has been given out:
    after a setval the server logs the next number that it gives out, and so shows a transaction for
    it (log_cnt in src/backend/commands/sequence.c).
    """
    everything = list(sequences)
    if not everything:
        return
    with connection.cursor(row_factory=tuple_row) as cursor:
        question = sql.SQL(" UNION ALL ").join(s.moved for s in everything)
        moved = {-int(oid) for (oid,) in cursor.execute(question, prepare=True)}
        if chosen := [s for s in everything if s.oid in moved or (used and s.called)]:
            # Sequences do not heed the ROLLBACK, and nothing is committed that the audit of the
            # next test would have to look for.
            try:
                cursor.execute(
                    sql.SQL("BEGIN; {}; ROLLBACK").format(put_back(chosen)), prepare=False
                )
            except psycopg.Error:
                connection.rollback()
                raise
