"""The one question of a reset: which tables have rows, which seeds changed, which sequences moved,
is the schema the same?

It is prepared once a clone. Tables are asked in portions, each a transaction of its own, so that a
schema of a thousand tables does not hold a thousand locks of the server's shared table at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq, sql

from ...server.connection import exchange
from ..transactions import NEWER, NEWER_STILL, NOW, TYPES, Moment, Since
from .catalog import SchemaCatalog, Table
from .schema_drift import Probes

_PORTION = 50


@dataclass(frozen=True)
class DirtyState:
    """What a database looks like at `moment`.

    `dirty`, bytes of each table that was empty in the template and has rows; `seeds`, (rows as old
    as the template, all rows) of the seeded ones; `moved`, the sequences by oid; `stamps` and
    `counts`, what `drift` reads from the catalogues; `objects`, the same of large objects: what old
    ones hold, how many old ones there are, and how many in all.
    """

    moment: Moment
    dirty: dict[int, int] = field(default_factory=dict)
    seeds: dict[int, tuple[int, int]] = field(default_factory=dict)
    moved: frozenset[int] = frozenset()
    stamps: tuple[str, ...] = ()
    counts: str = ""
    objects: tuple[str, ...] = ()


class DirtyProbe:
    """The prepared statements behind the question, in one session.

    Arguments: `connection`, an autocommit connection that the application does not use;
    `superuser`, whether it may read who wrote the contents of large objects.
    """

    def __init__(
        self, connection: psycopg.Connection[Any], facts: SchemaCatalog, superuser: bool
    ) -> None:
        self.connection = connection
        self.facts = facts
        self._asked = [_dirty(table) for table in facts.tables if not table.seeded]
        self._asked += [sequence.moved for sequence in facts.sequences]
        self._seeds = [table for table in facts.tables if table.seeded and not table.opaque]
        self._superuser = superuser
        self._probes = Probes.of(connection, [table.oid for table in facts.tables if table.opaque])
        self._variants: dict[bool, list[tuple[str, bool]]] = {}
        self._ignored: list[int] = []

    def ignore(self, oids: list[int]) -> None:
        """Do not look at some seeded tables any more: what else is known of them decides."""
        if oids:
            self._ignored = oids
            self._seeds = [table for table in self._seeds if table.oid not in oids]
            self._variants.clear()

    def _variant(self, running: bool) -> list[tuple[str, bool]]:
        """Return the prepared statements, as (name, whether it takes arguments); `running`, for
        moments at which other transactions were running, which makes looking at rows dearer.

        The first asks for everything in one snapshot, up to the size of a portion.
        """
        if running in self._variants:
            return self._variants[running]
        newer = NEWER if running else NEWER_STILL
        found: list[tuple[str, bool]] = []

        def prepare(types: bool, columns: list[sql.Composable]) -> None:
            kind = "running" if running else "still"
            found.append((f"dbclone_{kind}_{len(self._ignored)}_{len(found)}", types))
            statement = sql.SQL("PREPARE {} {} AS SELECT {}").format(
                sql.Identifier(found[-1][0]),
                sql.SQL(TYPES if types else ""),
                sql.SQL(", ").join(columns),
            )
            self.connection.execute(statement, prepare=False)

        first = [_array(self._asked[:_PORTION]), _counts(self._seeds[:_PORTION], newer)]
        prepare(
            True, [sql.SQL(NOW), _STAMP, *first, self._probes.select(newer), *self._objects(newer)]
        )
        for start in range(_PORTION, len(self._asked), _PORTION):
            prepare(False, [_STAMP, _array(self._asked[start : start + _PORTION])])
        for start in range(_PORTION, len(self._seeds), _PORTION):
            prepare(True, [_STAMP, _counts(self._seeds[start : start + _PORTION], newer)])
        self._variants[running] = found
        return found

    def _objects(self, newer: str) -> list[sql.Composable]:
        # Only a superuser may see who wrote the contents of large objects; others read those that
        # are theirs.
        old = f"SELECT oid FROM pg_largeobject_metadata WHERE NOT {newer}"
        before = f"count(*) FILTER (WHERE NOT {newer})"
        contents = f"""(SELECT concat_ws(':', {before},
                count(*) FILTER (WHERE {newer} AND loid IN ({old}))) FROM pg_largeobject)"""
        if not self._superuser:
            contents = f"""(SELECT sum(hashtextextended(encode(lo_get(oid), 'hex'), 0))
                FROM pg_largeobject_metadata
                WHERE NOT {newer} AND pg_has_role(lomowner, 'USAGE'))"""
        numbers = f"(SELECT concat_ws(':', {before}, count(*)) FROM pg_largeobject_metadata)"
        return [sql.SQL(contents), sql.SQL(numbers)]

    def commands(self, since: Since) -> list[bytes]:
        """Return what is sent to ask; `since` says which rows are new."""
        calls = [
            f"EXECUTE {name}{since.arguments if types else ''}".encode()
            for name, types in self._variant(since.running)
        ]
        if len(calls) == 1:
            return calls
        # Each portion lets go of its locks before the next.
        return [
            calls[0],
            *(command for call in calls[1:] for command in (b"COMMIT", b"BEGIN", call)),
            b"COMMIT",
        ]

    def read(self, results: list[Any], since: Since) -> DirtyState:
        """Return the answer in the results of `commands`, which are the last of these results."""
        names = self._variant(since.running)
        rows = [result for result in results if result.status == pq.ExecStatus.TUPLES_OK][
            -len(names) :
        ]
        first = [
            (rows[0].get_value(0, column) or b"").decode() for column in range(rows[0].nfields)
        ]
        stamps, entries, seeded = [first[2]], first[3].strip("{}"), first[4].strip("{}")
        for (_, types), result in zip(names[1:], rows[1:], strict=True):
            stamp, text = ((result.get_value(0, column) or b"").decode() for column in (0, 1))
            stamps.append(stamp)
            if types:
                seeded += "," + text.strip("{}")
            else:
                entries += "," + text.strip("{}")
        dirty: dict[int, int] = {}
        moved = set()
        for entry in filter(None, entries.split(",")):
            oid, _, size = entry.partition(":")
            if size:
                dirty[int(oid)] = int(size)
            else:
                moved.add(-int(oid))
        moment = Moment.of((first[0], first[1]))
        return DirtyState(
            moment,
            dirty,
            _seeds(seeded),
            frozenset(moved),
            tuple(stamps),
            first[5],
            (first[6], *first[7].split(":")),
        )

    def send(self, commands: list[bytes]) -> list[Any]:
        """Send commands in one message and return all results."""
        with self.connection.lock:
            return list(self.connection.wait(exchange(self.connection.pgconn, commands)))

    def ask(self, since: Since) -> DirtyState:
        """Ask, in one round trip."""
        return self.read(self.send(self.commands(since)), since)

    def count(self, tables: list[Table], since: Since) -> dict[int, tuple[int, int]]:
        """Return what an answer's `seeds` would be of tables that are ignored."""
        if not tables:
            return {}
        (result,) = self.send(
            [sql.SQL("SELECT {}").format(_counts(tables, since.newer())).as_bytes(self.connection)]
        )
        return _seeds((result.get_value(0, 0) or b"").decode().strip("{}"))


def _seeds(text: str) -> dict[int, tuple[int, int]]:
    entries = (entry.split(":") for entry in filter(None, text.split(",")))
    return {int(oid): (int(old), int(count)) for oid, old, count in entries}


_STAMP = sql.SQL("timestamptz 'now'")


def _dirty(table: Table) -> sql.Composed:
    """Return a query with one row, the table's oid and bytes, if it has rows; or storage, if its
    rows are not ours to read."""
    if table.opaque:
        return sql.SQL(
            "SELECT concat_ws(':', {0}, pg_relation_size({0})) WHERE pg_relation_size({0}) > 0"
        ).format(table.oid)
    return sql.SQL(
        "SELECT concat_ws(':', {0}, pg_relation_size({0})) FROM ONLY {1} LIMIT 1"
    ).format(table.oid, table.identifier)


def _array(queries: list[sql.Composed]) -> sql.Composable:
    if not queries:
        return sql.SQL("'{}'::text[]")
    return sql.SQL("ARRAY({})").format(
        sql.SQL(" UNION ALL ").join(sql.SQL("({})").format(query) for query in queries)
    )


def _counts(tables: list[Table], newer: str) -> sql.Composed:
    columns = [
        sql.SQL(
            "(SELECT concat_ws(':', {}, count(*) FILTER (WHERE NOT {}), count(*)) FROM ONLY {})"
        ).format(table.oid, sql.SQL(newer), table.identifier)
        for table in tables
    ]
    return sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(columns))
