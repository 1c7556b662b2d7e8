"""What a reset needs to know of a schema, asked once a clone: tables, foreign keys, what was in
them, where sequences stood."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ...errors import KeptTableReferenced, SettingsError
from ..sequences import Sequence
from ..sequences import ask as ask_sequences

# Partitions and inheritance children are tables of their own here, and parents with storage too;
# each is read and emptied ONLY by itself, so that a partition which is a foreign table, and with it
# another server, is out of reach. tgtype bits: 4 INSERT, 8 DELETE, 16 UPDATE, 32 TRUNCATE
# (src/include/catalog/pg_trigger.h). A trigger or rule fires if it is enabled for the session's
# replication role: O and A in origin, R and A in replica. A foreign key that acts on what
# references a deleted row runs a statement there, and so that table's triggers, even where it finds
# no row. Whether a trigger is the user's is not in tgisinternal: before PostgreSQL 15 a partition
# has what is declared on its parent as an internal one. Those of keys have a constraint, whose kind
# is 't' where it is a constraint trigger of the user's.
_TABLES = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text,
       pg_relation_size(c.oid) > 0, c.relispopulated,
       coalesce((SELECT bit_or(t.tgtype::int) FROM pg_trigger t
                 WHERE t.tgrelid = c.oid AND t.tgenabled = ANY(%(fires)s)
                 AND NOT EXISTS (SELECT FROM pg_constraint i
                                 WHERE i.oid = t.tgconstraint AND i.contype <> 't')), 0),
       coalesce((SELECT array_agg(DISTINCT r.ev_type::text) FROM pg_rewrite r
                 WHERE r.ev_class = c.oid AND r.ev_type <> '1'
                 AND r.ev_enabled = ANY(%(fires)s)), '{}'),
       NOT %(superuser)s AND c.relrowsecurity AND c.relforcerowsecurity,
       pg_has_role(c.relowner, 'USAGE')
       OR (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'DELETE')),
       CASE WHEN c.relispartition THEN
            (SELECT u.nspname || '.' || p.relname
             FROM pg_class p JOIN pg_namespace u ON u.oid = p.relnamespace
             WHERE p.oid = pg_partition_root(c.oid)) END,
       NOT %(superuser)s AND EXISTS (
           SELECT FROM pg_constraint k
           WHERE k.contype = 'f' AND k.confrelid = c.oid AND k.confdeltype IN ('c', 'n', 'd')
           AND (EXISTS (SELECT FROM pg_trigger t
                        WHERE t.tgrelid = k.conrelid AND t.tgenabled = ANY(%(fires)s)
                        AND NOT EXISTS (SELECT FROM pg_constraint i
                                        WHERE i.oid = t.tgconstraint AND i.contype <> 't'))
                OR EXISTS (SELECT FROM pg_rewrite r
                           WHERE r.ev_class = k.conrelid AND r.ev_type <> '1'
                           AND r.ev_enabled = ANY(%(fires)s))))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
ORDER BY n.nspname, c.relname
"""
_KEYS = (
    "SELECT conrelid::int8, confrelid::int8, conname::text FROM pg_constraint WHERE contype = 'f'"
)


@dataclass(frozen=True)
class Table:
    """An ordinary table, a partition, an inheritance child, or a materialized view.

    `seeded`: it has rows in the template. `opaque`: its rows cannot be read with our rights.
    `undeletable`, `untruncatable`: a trigger, rule or policy of the user would make that command do
    less or more than to empty the table. `unrepairable`: the same for putting single rows back.
    `view`: a materialized view, whose rows nobody but REFRESH can change. `root`: the partitioned
    table that it is a part of, with its schema.
    """

    oid: int
    schema: str
    name: str
    seeded: bool = False
    opaque: bool = False
    undeletable: bool = False
    untruncatable: bool = False
    unrepairable: bool = False
    view: bool = False
    root: str = ""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class SchemaCatalog:
    """A schema as a reset sees it.

    `tables`, all that a reset has to care for; `kept`, those that the setting `keep` leaves alone;
    `references`, by oid, which tables reference which; `sequences`, those of kept tables excepted.
    """

    tables: tuple[Table, ...]
    references: frozenset[tuple[int, int]]
    sequences: tuple[Sequence, ...]
    kept: tuple[Table, ...] = ()
    by_oid: dict[int, Table] = field(default_factory=dict)

    @classmethod
    def ask(
        cls,
        connection: psycopg.Connection[Any],
        superuser: bool,
        keep: Iterable[str] = (),
        known: tuple[Sequence, ...] | None = None,
    ) -> SchemaCatalog:
        """Read the facts of a database that is equal to its template.

        Arguments: `superuser`, whether resets will run in a session whose replication role is
        replica, where most triggers sleep; `keep`, names of tables to leave alone, as patterns of
        `table` or `schema.table`; `known`, positions of sequences that were read before something
        moved them. Raises KeptTableReferenced if a kept table references one that is not, and
        SettingsError if a pattern fits no table.
        """
        fires = ["R", "A"] if superuser else ["O", "A"]
        with connection.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(_TABLES, {"fires": fires, "superuser": superuser}).fetchall()
            # A view never populated cannot be read; that it stays so is in the catalogue
            rows = [row for row in rows if row[5]]
            opaque = {row[0] for row in rows if row[8] or not row[9]}
            filled = _with_rows(cursor, [row for row in rows if row[4] and row[0] not in opaque])
            tables = [
                Table(
                    row[0], row[1], row[2],
                    seeded=row[0] in filled or (row[0] in opaque and row[4]),
                    opaque=row[0] in opaque,
                    undeletable=bool(row[6] & 8) or "4" in row[7] or row[8] or row[11],
                    untruncatable=bool(row[6] & 32),
                    unrepairable=bool(row[6] & 28) or bool(row[7]) or row[8] or row[11],
                    view=row[3] == "m",
                    root=row[10] or "",
                )
                for row in rows
            ]  # fmt: skip
            keys = cursor.execute(_KEYS).fetchall()
            found = ask_sequences(connection) if known is None else known
        kept = _kept(tables, tuple(keep))
        _refuse_references(kept, tables, keys)
        return cls(
            tuple(table for table in tables if table.oid not in kept),
            frozenset((child, parent) for child, parent, _ in keys),
            tuple(s for s in found if s.owner not in kept),
            tuple(kept.values()),
            {table.oid: table for table in tables if table.oid not in kept},
        )


def _with_rows(cursor: psycopg.Cursor[Any], rows: list[Any]) -> set[int]:
    """Return the oids of those tables that have rows:
    storage alone may be what rolled-back rows left."""
    if not rows:
        return set()
    parts = [
        sql.SQL("SELECT {}::int8 WHERE EXISTS (SELECT FROM ONLY {})").format(
            row[0], sql.Identifier(row[1], row[2])
        )
        for row in rows
    ]
    return {oid for (oid,) in cursor.execute(sql.SQL(" UNION ALL ").join(parts))}


def _kept(tables: list[Table], patterns: tuple[str, ...]) -> dict[int, Table]:
    kept = {}
    for pattern in patterns:
        found = [
            table
            for table in tables
            if any(fnmatchcase(name, pattern) for name in _names(table, "." in pattern))
        ]
        if not found:
            raise SettingsError(
                f"keep: no table is called {pattern!r}",
                f"The tables are: {', '.join(table.shown for table in tables) or 'none'}.",
                "Write a table's name, with its schema where that is not unique; * stands"
                " for any letters.",
            )
        kept.update({table.oid: table for table in found})
    return kept


def _names(table: Table, qualified: bool) -> list[str]:
    names = [table.shown, *([table.root] if table.root else [])]
    return names if qualified else [table.name, *(name.partition(".")[2] for name in names[1:])]


def _refuse_references(
    kept: dict[int, Table], tables: list[Table], keys: list[tuple[int, int, str]]
) -> None:
    others = {table.oid: table for table in tables if table.oid not in kept}
    for child, parent, name in keys:
        if child in kept and parent in others:
            raise KeptTableReferenced(
                f"table {kept[child].shown!r} is to be kept and references"
                f" {others[parent].shown!r}, which is not",
                f"Its constraint {name!r} would be broken, or its rows deleted with those"
                f" that they reference.",
                f"Add {others[parent].shown!r} to keep, or take {kept[child].shown!r} out.",
            )
