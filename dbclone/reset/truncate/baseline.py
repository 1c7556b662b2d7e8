"""A database's state as its template left it, as far as a reset has to know it: remembered once,
compared with ever after.

It may be remembered in one copy of a template and used for another: CREATE DATABASE copies files,
so that object ids, rows and the transaction numbers of their writers are the same in all copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg

from ..sequences import Sequence
from ..transactions import Since
from .catalog import SchemaCatalog, Table
from .probe import DirtyProbe, DirtyState
from .schema_drift import SchemaDrift
from .seeds import SeedRows, remember

_SCAN = 60e-9  # seconds to look at one row


@dataclass(frozen=True)
class Baseline:
    """What there was. `answer`, to the question; `counts`, rows of the seeded tables by oid;
    `seeds`, those that can be put back row by row, and `fixed` those that cannot; `drift`, the
    catalogues, once they had to be looked at."""

    facts: SchemaCatalog
    answer: DirtyState
    counts: dict[int, int]
    drift: SchemaDrift
    seeds: dict[int, SeedRows]
    fixed: frozenset[int]

    @classmethod
    def remember(cls, question: DirtyProbe, since: Since) -> Baseline:
        """Look at a database that is equal to its template, over the session in which `question`
        was prepared."""
        answer, facts, connection = question.ask(since), question.facts, question.connection
        counts = {oid: count for oid, (_, count) in answer.seeds.items()}
        seeds, fixed = remember(
            connection, [t for t in facts.tables if t.seeded and not t.opaque], counts
        )
        return cls(facts, answer, counts, SchemaDrift(), seeds, fixed)

    def blind(self, clone_seconds: float) -> list[Table]:
        """Return the seeded tables that cannot be looked at,
        or not for less than a fresh clone costs."""
        return [
            table
            for table in self.facts.tables
            if table.seeded and (table.opaque or self.counts[table.oid] * _SCAN > clone_seconds / 2)
        ]

    def changed(self, answer: DirtyState) -> list[int]:
        """Return the seeded tables that an answer shows changed."""
        return [
            oid
            for oid, (old, count) in answer.seeds.items()
            if (old, count) != (self.counts[oid], self.counts[oid])
        ]


def question(
    connection: psycopg.Connection[Any],
    superuser: bool,
    keep: Iterable[str],
    known: tuple[Sequence, ...] | None = None,
) -> DirtyProbe:
    """Prepare the question in a database that is equal to its template.

    Arguments: `keep`, as for `SchemaCatalog.ask`; `known`, positions of sequences that were read
    before something moved them.
    """
    return DirtyProbe(connection, SchemaCatalog.ask(connection, superuser, keep, known), superuser)
