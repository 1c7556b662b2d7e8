"""The rows that every test starts with: remembered once a clone as text, and put back one by one
where a test changed them.

A changed row is found by its writer: whoever inserted or updated it has a transaction number that
the last reset had not seen. A deleted one is missed in the count. To find out which it was, rows
are told apart by their primary key, or by all their columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ..transactions import Since
from .catalog import Table

# Remembered at most, all tables together; a change in what is larger costs a new clone
ROWS, BYTES = 20_000, 8_000_000
# attidentity 'a' is GENERATED ALWAYS, attgenerated any generated column;
# dropped columns stay in pg_attribute.
_COLUMNS = """
SELECT a.attrelid::int8, a.attname::text, a.attidentity = 'a', a.attgenerated <> '',
       a.attnum = ANY(coalesce((SELECT i.indkey FROM pg_index i
                                WHERE i.indrelid = a.attrelid AND i.indisprimary), '')::int2[])
FROM pg_attribute a WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""


@dataclass(frozen=True)
class Column:
    """A column: `fixed`, an UPDATE may not set it; `generated`, an INSERT may not either; `key`,
    part of the primary key."""

    name: str
    fixed: bool
    generated: bool
    key: bool

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)


@dataclass(frozen=True)
class Change:
    """What became of one table's seeds: whole rows as text, as they were, of those whose key is
    there `again` with other columns and of those that are `missing`;
    `extra`, there are new rows besides."""

    again: tuple[str, ...]
    missing: tuple[str, ...]
    extra: bool


@dataclass
class SeedRows:
    """One table's seeds: `rows`, from the text of the key to the texts of the rows that have it."""

    table: Table
    columns: tuple[Column, ...]
    rows: dict[str, list[str]]
    count: int

    @property
    def keys(self) -> list[Column]:
        return [column for column in self.columns if column.key]

    @property
    def _key(self) -> sql.Composable:
        if not self.keys:
            return sql.SQL("ROW(t.*)::text")  # t alone would be a column of that name
        return sql.SQL("ROW({})::text").format(
            sql.SQL(", ").join(sql.SQL("t.{}").format(c.identifier) for c in self.keys)
        )

    def changed(self, connection: psycopg.Connection[Any], since: Since, old: int) -> Change:
        """Ask which seeds are not there any more as they were; `old`, how many are.

        One round trip, which reads the keys of new rows, and where rows were deleted another, which
        reads those of all others.
        """
        cursor = connection.cursor(row_factory=tuple_row)
        question = sql.SQL("SELECT {} FROM ONLY {} AS t WHERE {}").format(
            self._key, self.table.identifier, sql.SQL(Since.asked("t."))
        )
        keys = [key for (key,) in cursor.execute(question, since.values, prepare=True)]
        known = [key for key in keys if key in self.rows] if self.keys else []
        again = tuple(self.rows[key][0] for key in known)
        extra = len(keys) > len(known)
        if old + len(known) == self.count:
            return Change(again, (), extra)
        left = sql.SQL("SELECT {} FROM ONLY {} AS t WHERE NOT {}").format(
            self._key, self.table.identifier, sql.SQL(since.newer("t."))
        )
        there = Counter([*known, *(key for (key,) in cursor.execute(left))])
        missing = tuple(text for key, texts in self.rows.items() for text in texts[there[key] :])
        return Change(again, missing, extra)

    def repair(self, change: Change, since: Since) -> list[sql.Composed]:
        """Return the parts of one statement that put the rows back and delete the new ones.

        All parts see the tables as they were before. A row whose key is there again is updated in
        place, so that rows which reference it never lack it; constraints are checked when the whole
        statement is done.
        """
        table, newer = self.table.identifier, sql.SQL(since.newer("t."))
        same = sql.SQL(" AND ").join(
            sql.SQL("t.{0} = o.{0}").format(column.identifier) for column in self.keys
        )
        settable = [
            column
            for column in self.columns
            if not (column.fixed or column.generated or column.key)
        ]
        insertable = [column for column in self.columns if not column.generated]
        parts = []
        if change.extra:
            kept = (
                sql.SQL(" AND NOT EXISTS (SELECT FROM {} WHERE {})").format(
                    self._old(change.again), same
                )
                if change.again
                else None
            )
            parts.append(
                sql.SQL("DELETE FROM ONLY {} AS t WHERE {}{}").format(
                    table, newer, kept or sql.SQL("")
                )
            )
        if change.missing:
            names = sql.SQL(", ").join(column.identifier for column in insertable)
            parts.append(
                sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                    table, names, names, self._old(change.missing)
                )
            )
        if change.again and settable:
            pairs = sql.SQL(", ").join(
                sql.SQL("{0} = o.{0}").format(column.identifier) for column in settable
            )
            parts.append(
                sql.SQL("UPDATE ONLY {} AS t SET {} FROM {} WHERE {}").format(
                    table, pairs, self._old(change.again), same
                )
            )
        return parts

    def _old(self, texts: tuple[str, ...]) -> sql.Composed:
        """Return rows as they were as an item of FROM, called o."""
        return sql.SQL(
            "(SELECT (r).* FROM (SELECT unnest({}::text[])::{} AS r OFFSET 0) AS u) AS o"
        ).format(sql.Literal(list(texts)), self.table.identifier)


def remember(
    connection: psycopg.Connection[Any], tables: Iterable[Table], counts: dict[int, int]
) -> tuple[dict[int, SeedRows], frozenset[int]]:
    """Read the seeds of a database that is equal to its template.

    Arguments: `counts`, rows by table. Returns what is remembered by table, and the tables whose
    seeds cannot be put back row by row: too large, in a materialized view, or where a trigger, rule
    or policy of the user would act.
    """
    candidates, total = [], 0
    for table in sorted(tables, key=lambda table: counts[table.oid]):
        total += counts[table.oid]
        if total <= ROWS and not (table.view or table.unrepairable or table.opaque):
            candidates.append(table)
    found: dict[int, SeedRows] = {}
    with connection.cursor(row_factory=tuple_row) as cursor:
        columns: dict[int, list[Column]] = {}
        for oid, *values in (
            cursor.execute(_COLUMNS, [[table.oid for table in candidates]]) if candidates else ()
        ):
            columns.setdefault(oid, []).append(Column(*values))
        left = BYTES
        for table in candidates:
            seeds = SeedRows(table, tuple(columns.get(table.oid, ())), {}, counts[table.oid])
            query = sql.SQL("SELECT {}, ROW(t.*)::text FROM ONLY {} AS t").format(
                seeds._key, table.identifier
            )
            for key, text in cursor.execute(query):
                seeds.rows.setdefault(key, []).append(text)
                left -= len(text)
            if left >= 0:
                found[table.oid] = seeds
    return found, frozenset(table.oid for table in tables if table.oid not in found)
