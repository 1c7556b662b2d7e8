"""From facts and an answer to statements. Pure: print a plan to see what a reset would run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from .catalog import SchemaCatalog, Table

PAGE = 8192


@dataclass(frozen=True)
class Costs:
    """What emptying costs on this server, in seconds: deleting the rows of one page, and truncating
    one table.

    A TRUNCATE makes new files for a table and its indexes, so that it is dearer than the DELETE of
    a few rows by far, and cheaper than that of many. The figures to start from are measured ones,
    and `learn` follows what this server really takes.
    """

    page: float = 50e-6
    truncate: float = 1e-3

    @classmethod
    def start(cls, durable: bool) -> Costs:
        """Return what to believe before anything has been measured:
        files of a durable server are flushed."""
        return cls(truncate=6e-3 if durable else 1e-3)

    def learn(self, pages: int, truncated: int, seconds: float) -> Costs:
        """Return the costs as they look after a reset that deleted so many pages, or truncated so
        many tables, in that time."""
        if truncated and not pages:
            return replace(self, truncate=0.7 * self.truncate + 0.3 * seconds / truncated)
        if pages >= 16 and not truncated:
            return replace(self, page=0.7 * self.page + 0.3 * seconds / pages)
        return self


@dataclass(frozen=True)
class Plan:
    """How to empty dirty tables: `statements` in order; `pages` deleted and tables `truncated`, to
    learn from; or, in `impossible`, why it cannot be done truly."""

    statements: tuple[sql.Composed, ...] = ()
    pages: int = 0
    truncated: int = 0
    impossible: str = ""


def plan(
    facts: SchemaCatalog,
    dirty: dict[int, int],
    costs: Costs | None = None,
    repairs: Sequence[sql.Composed] = (),
) -> Plan:
    """Return how to empty the tables with these oids and bytes.

    Arguments: `repairs`, statements about seeded rows to run along with the deletes.

    One statement deletes the rows of all small tables, whatever their foreign keys, because
    constraints are checked at its end. Large tables, and those that a DELETE cannot empty truly,
    are truncated, together with the tables that reference them, which TRUNCATE demands and which
    never means CASCADE. What has rows to keep is never emptied: then the plan is impossible.
    """
    costs = costs or Costs()
    wanted = [facts.by_oid[oid] for oid in dirty]
    if views := [table for table in wanted if table.view or table.seeded]:
        return Plan(impossible=f"{_names(views)} changed")
    truncated: dict[int, Table] = {}
    for table in wanted:
        closure = _closure(facts, table)
        pages = dirty[table.oid] // PAGE
        if closure is None:
            if table.undeletable:
                return Plan(
                    impossible=f"{table.shown} cannot be emptied: its own triggers or rules, or a"
                    " table with rows to keep that references it, stand against both ways"
                )
        elif (
            table.undeletable
            or pages * costs.page > len(closure.keys() - truncated.keys()) * costs.truncate
        ):
            truncated.update(closure)
    deleted = [table for table in wanted if table.oid not in truncated]
    statements = []
    if truncated:
        statements.append(
            sql.SQL("TRUNCATE ONLY {}").format(
                sql.SQL(", ONLY ").join(t.identifier for t in truncated.values())
            )
        )
    parts = [sql.SQL("DELETE FROM ONLY {}").format(table.identifier) for table in deleted] + list(
        repairs
    )
    if parts:
        statements.append(together(parts))
    return Plan(
        tuple(statements), sum(dirty[table.oid] // PAGE for table in deleted), len(truncated)
    )


def together(parts: Sequence[sql.Composed]) -> sql.Composed:
    """Return one statement that does what all these parts do,
    each seeing the tables as they were before."""
    *first, last = parts
    if not first:
        return last
    shown = [
        sql.SQL("{} AS ({})").format(sql.Identifier(f"d{i}"), statement)
        for i, statement in enumerate(first)
    ]
    return sql.SQL("WITH {} {}").format(sql.SQL(", ").join(shown), last)


def _closure(facts: SchemaCatalog, table: Table) -> dict[int, Table] | None:
    """Return the tables that a TRUNCATE of this one has to name;
    None if one of them must not be truncated."""
    found = {table.oid: table}
    queue = [table]
    while queue:
        parent = queue.pop()
        if parent.untruncatable or parent.seeded or parent.view:
            return None
        for child in sorted(c for c, p in facts.references if p == parent.oid and c not in found):
            # Kept, or a partitioned table, which cannot be named without all its parts
            if child not in facts.by_oid:
                return None
            found[child] = facts.by_oid[child]
            queue.append(facts.by_oid[child])
    return found


def _names(tables: Iterable[Table]) -> str:
    return ", ".join(table.shown for table in tables)
