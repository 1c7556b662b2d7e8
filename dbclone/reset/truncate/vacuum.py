"""Keeping tables small over thousands of tests: deleted and rolled-back rows keep their place until
a VACUUM.

Without it a table that every test writes one row to has thousands of dead entries after thousands
of tests, and each scan of it passes them all (PostgreSQL documentation, routine-vacuuming). A
VACUUM of an emptied table gives its pages back and leaves the planner's statistics as they were: of
an empty table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from .catalog import SchemaCatalog

_EVERY = 100  # resets
_GROWN = 4  # pages above what it was


class VacuumScheduler:
    """Counts resets, and vacuums what has grown every so often. Made when the database is equal to
    its template."""

    def __init__(self, control: psycopg.Connection[Any], facts: SchemaCatalog) -> None:
        self._control = control
        self._facts = facts
        self._tables = [table.oid for table in facts.tables if not (table.view or table.opaque)]
        self._pages = self._sizes(self._tables)
        self._written: set[int] = set()
        self._resets = 0

    def _sizes(self, oids: Iterable[int]) -> dict[int, int]:
        query = "SELECT o, pg_relation_size(o::oid::regclass) / 8192 FROM unnest(%s::int8[]) AS o"
        return dict(
            self._control.cursor(row_factory=tuple_row).execute(query, [list(oids)]).fetchall()
        )

    def note(self, oids: Iterable[int]) -> None:
        """Add the tables that one reset found written."""
        self._written.update(oids)

    def due(self) -> bool:
        """Count one reset, and return whether it is time to look."""
        self._resets += 1
        return self._resets % _EVERY == 0 and bool(self._written)

    def run(self, everything: bool = False) -> int:
        """Vacuum the tables that have grown, of those noted or of `everything`; return how many.
        One that somebody holds a lock on is left for the next time."""
        if everything:
            self._written.update(self._tables)
        chosen = [
            oid
            for oid, pages in self._sizes(self._written & set(self._tables)).items()
            if pages > self._pages[oid] + _GROWN
        ]
        self._written.clear()
        for oid in chosen:
            statement = sql.SQL("VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON) {}").format(
                self._facts.by_oid[oid].identifier
            )
            self._control.execute(statement, prepare=False)
        return len(chosen)
