"""From facts and a list of dirty tables to statements. Pure: print it to see what a reset would run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from .facts import Facts, Table


@dataclass(frozen=True)
class Plan:
    """The statements that empty the dirty tables, in order; or, in `impossible`, why that cannot be done truly."""

    statements: tuple[sql.Composed, ...] = ()
    impossible: str = ""


def plan(facts: Facts, dirty: Iterable[int]) -> Plan:
    """Return how to empty the tables with these oids.

    One DELETE statement empties all small tables whatever their foreign keys, because constraints are checked at its end.
    Tables that a DELETE cannot empty truly are truncated, together with the tables that reference them, which TRUNCATE demands
    and which never means CASCADE. A seeded table is never emptied: then the plan is impossible.
    """
    wanted = [facts.by_oid[oid] for oid in dirty]
    if seeded := [table for table in wanted if table.seeded]:
        return Plan(impossible=f"seeded rows of {_names(seeded)} were changed")
    truncated: dict[int, Table] = {table.oid: table for table in wanted if table.stubborn}
    queue = list(truncated)
    while queue:
        parent = queue.pop()
        for child in sorted(c for c, p in facts.references if p == parent and c not in truncated):
            table = facts.by_oid.get(child)
            if table is None or table.seeded:
                return Plan(
                    impossible=f"{_names([facts.by_oid[parent]])} must be truncated, but a table with rows to keep references it"
                )
            truncated[child] = table
            queue.append(child)
    deleted = [table for table in wanted if table.oid not in truncated]
    statements = []
    if truncated:
        statements.append(sql.SQL("TRUNCATE ONLY {}").format(sql.SQL(", ONLY ").join(t.identifier for t in truncated.values())))
    if deleted:
        *first, last = [sql.SQL("DELETE FROM ONLY {}").format(table.identifier) for table in deleted]
        parts = [sql.SQL("{} AS ({})").format(sql.Identifier(f"d{i}"), statement) for i, statement in enumerate(first)]
        statements.append(sql.SQL("WITH {} {}").format(sql.SQL(", ").join(parts), last) if parts else last)
    return Plan(tuple(statements))


def _names(tables: Iterable[Table]) -> str:
    return ", ".join(f"{table.schema}.{table.name}" for table in tables)
