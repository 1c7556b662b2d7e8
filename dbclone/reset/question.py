"""The one question of a reset: which tables have rows, which seeds changed, which sequences moved, is the schema the same?

It is prepared once a clone. Tables are asked in portions, each a transaction of its own, so that a schema of a thousand tables does
not hold a thousand locks of the server's shared table at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq, sql

from .cursors import exchange
from .drift import probes
from .facts import Facts, Table
from .witness import NEWER, NOW, TYPES, Moment, Since

_PORTION = 50
_CONTENTS = f"""(SELECT sum(hashtextextended(encode(lo_get(oid), 'hex'), 0)) FROM pg_largeobject_metadata
    WHERE NOT {NEWER} AND pg_has_role(lomowner, 'USAGE'))"""
_OLD = f"NOT {NEWER}"


@dataclass(frozen=True)
class Answer:
    """What a database looks like at `moment`.

    `dirty`, bytes of each table that was empty in the template and has rows; `seeds`, (rows as old as the template, all rows) of
    the seeded ones; `moved`, the sequences by oid; `stamps` and `counts`, what `drift` reads from the catalogues; `objects`, the
    same of large objects: what old ones hold, how many old ones there are, and how many in all.
    """

    moment: Moment
    dirty: dict[int, int] = field(default_factory=dict)
    seeds: dict[int, tuple[int, int]] = field(default_factory=dict)
    moved: frozenset[int] = frozenset()
    stamps: tuple[str, ...] = ()
    counts: str = ""
    objects: tuple[str, ...] = ()


class Question:
    """The prepared statements behind the question, in one session.

    Arguments: `connection`, an autocommit connection that the application does not use, in a database equal to its template;
    `superuser`, whether it may read the contents of large objects.
    """

    def __init__(self, connection: psycopg.Connection[Any], facts: Facts, superuser: bool) -> None:
        self.connection = connection
        self.facts = facts
        asked: list[tuple[Table | None, sql.Composable]] = []
        self._seeded = [t for t in facts.tables if t.seeded and not t.opaque]
        for table in facts.tables:
            if table.opaque and not table.seeded:
                query = sql.SQL("SELECT concat_ws(':', {0}, pg_relation_size({0})) WHERE pg_relation_size({0}) > 0").format(
                    table.oid
                )
                asked.append((table, query))
            elif not table.seeded and not table.view:
                query = sql.SQL("SELECT concat_ws(':', {0}, pg_relation_size({0})) FROM ONLY {1} LIMIT 1").format(
                    table.oid, table.identifier
                )
                asked.append((table, query))
        asked += [(None, sequence.moved) for sequence in facts.sequences]
        self._names: list[tuple[str, bool]] = []
        # First, so that what others commit while the portions are asked counts as new the next time.
        self._prepare("dbclone_moment", "", sql.SQL(NOW))
        for start in range(0, max(len(asked), 1), _PORTION):
            parts = [sql.SQL("({})").format(query) for _, query in asked[start : start + _PORTION]]
            found = sql.SQL("ARRAY({})").format(sql.SQL(" UNION ALL ").join(parts)) if parts else sql.SQL("'{{}}'::text[]")
            self._prepare(f"dbclone_ask_{start}", "", sql.SQL("timestamptz 'now', {}").format(found))
        for start in range(0, len(self._seeded), _PORTION):
            columns = [
                sql.SQL("(SELECT concat_ws(':', {}, count(*) FILTER (WHERE {}), count(*)) FROM ONLY {})").format(
                    table.oid, sql.SQL(_OLD), table.identifier
                )
                for table in self._seeded[start : start + _PORTION]
            ]
            self._prepare(
                f"dbclone_seeds_{start}", TYPES, sql.SQL("timestamptz 'now', ARRAY[{}]").format(sql.SQL(", ").join(columns))
            )
        # Only a superuser may see who wrote the contents of large objects.
        contents = f"(SELECT count(*) FILTER (WHERE {_OLD}) FROM pg_largeobject)" if superuser else _CONTENTS
        numbers = f"(SELECT concat_ws(':', count(*) FILTER (WHERE {_OLD}), count(*)) FROM pg_largeobject_metadata)"
        rest = sql.SQL("{}, {}, {}").format(probes(connection), sql.SQL(contents), sql.SQL(numbers))
        self._prepare("dbclone_rest", TYPES, rest)

    def _prepare(self, name: str, types: str, columns: sql.Composable) -> None:
        self.connection.execute(
            sql.SQL("PREPARE {} {} AS SELECT {}").format(sql.Identifier(name), sql.SQL(types), columns), prepare=False
        )
        self._names.append((name, bool(types)))

    def commands(self, since: Since) -> list[bytes]:
        """Return what is sent to ask; `since` says which rows are new."""
        calls = [f"EXECUTE {name}{since.arguments}" if types else f"EXECUTE {name}" for name, types in self._names]
        return [command.encode() for call in calls for command in ((call,) if len(calls) < 5 else ("BEGIN", call, "COMMIT"))]

    def read(self, results: list[Any]) -> Answer:
        """Return the answer in the results of `commands`, which are the last of these results."""
        rows = [result for result in results if result.status == pq.ExecStatus.TUPLES_OK][-len(self._names) :]
        dirty: dict[int, int] = {}
        seeds: dict[int, tuple[int, int]] = {}
        moved = set()
        stamps = []
        first, *portions, last = rows
        for (_, types), result in zip(self._names[1:-1], portions, strict=True):
            stamps.append(_text(result, 0))
            for entry in filter(None, _text(result, 1).strip("{}").split(",")):
                oid, _, value = entry.partition(":")
                if types:
                    old, _, count = value.partition(":")
                    seeds[int(oid)] = (int(old), int(count))
                elif value:
                    dirty[int(oid)] = int(value)
                else:
                    moved.add(-int(oid))
        objects = (_text(last, 1), *_text(last, 2).split(":"))
        moment = Moment.of((_text(first, 0), _text(first, 1)))
        return Answer(moment, dirty, seeds, frozenset(moved), tuple(stamps), _text(last, 0), objects)

    def send(self, commands: list[bytes]) -> list[Any]:
        """Send commands in one message and return all results."""
        with self.connection.lock:
            return list(self.connection.wait(exchange(self.connection.pgconn, commands)))

    def ask(self, since: Since) -> Answer:
        """Ask, in one round trip."""
        return self.read(self.send(self.commands(since)))


def _text(result: Any, column: int) -> str:
    return (result.get_value(0, column) or b"").decode()
