"""Which tables the next test will have written, going by the last ones: emptied in the very message
that asks about all others.

A wrong guess costs microseconds, and never correctness: what was not guessed is found by the
question.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql

from ..sequences import put_back
from .catalog import SchemaCatalog

_PAGES = 64  # of a guessed table are deleted unseen; one that grew larger is for the plan
_TESTS = 8  # that are remembered
_TABLES = 16  # guessed at most
_PREPARED = 32  # statements kept in the session


class DirtyPredictor:
    """Remembers what the last resets found. Arguments: `control`, the session in which its
    statements are prepared."""

    def __init__(self, control: psycopg.Connection[Any], facts: SchemaCatalog) -> None:
        self._control = control
        self._facts = facts
        self._sequences = {sequence.oid: sequence for sequence in facts.sequences}
        self._recent: deque[frozenset[int]] = deque(maxlen=_TESTS)
        self._moved: deque[frozenset[int]] = deque(maxlen=_TESTS)
        self._prepared: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
        self._numbers = itertools.count()
        self._asked: tuple[int, ...] = ()
        self._put_back: tuple[int, ...] = ()
        self._wanted: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._learned = True

    def learn(self, hit: Iterable[int], dirty: Mapping[int, int], moved: Iterable[int]) -> None:
        """Add what one reset found: the guessed tables that were `hit`, others that were `dirty`
        with their bytes, and the sequences that had `moved`, those of the guess included."""
        found = frozenset([*hit, *(oid for oid, size in dirty.items() if size <= _PAGES * 8192)])
        again = frozenset([*moved, *(self._put_back if hit else ())])
        # A deque full of the same says what it said before.
        self._learned = (
            self._learned
            or not all(each == found for each in self._recent)
            or not all(e == again for e in self._moved)
        )
        self._recent.append(found)
        self._moved.append(again)

    def commands(self) -> list[bytes]:
        """Return the call that empties the tables which half of the last resets or more found
        dirty; none if there are none."""
        if self._learned:
            tables = tuple(oid for oid in _most(self._recent) if not self._spared(oid))
            wanted = tables, _most(self._moved) if tables else ()
            # Tests that write at random make a new guess each time: after a few, one is prepared
            # only if it is wanted twice.
            if len(self._prepared) < _TESTS or wanted == self._wanted or wanted in self._prepared:
                self._learned = False
                self._asked, self._put_back = wanted
            self._wanted = wanted
        if not self._asked:
            return []
        key = (self._asked, self._put_back)
        if key not in self._prepared:
            if len(self._prepared) >= _PREPARED:
                oldest = self._prepared.pop(next(iter(self._prepared)))
                self._control.execute(
                    sql.SQL("DEALLOCATE {}").format(sql.Identifier(oldest)), prepare=False
                )
            name = f"dbclone_guess_{next(self._numbers)}"
            statement = sql.SQL("PREPARE {} AS {}").format(
                sql.Identifier(name), self._statement(*key)
            )
            self._control.execute(statement, prepare=False)
            self._prepared[key] = name
        return [f"EXECUTE {self._prepared[key]}".encode()]

    def _spared(self, oid: int) -> bool:
        """Return whether a DELETE is not the way to empty this table."""
        return self._facts.by_oid[oid].undeletable or self._facts.by_oid[oid].opaque

    def read(self, result: Any) -> set[int]:
        """Return the tables that had rows, from the first result of `commands`."""
        counts = (result.get_value(0, 0) or b"").decode().split(",")
        return {oid for oid, count in zip(self._asked, counts, strict=True) if count != "0"}

    def _statement(self, tables: tuple[int, ...], moved: tuple[int, ...]) -> sql.Composed:
        parts = [
            sql.SQL("{} AS (DELETE FROM ONLY {} WHERE ctid < {} RETURNING 1)").format(
                sql.Identifier(f"g{oid}"), self._facts.by_oid[oid].identifier, f"({_PAGES},0)"
            )
            for oid in tables
        ]
        counts = sql.SQL(", ").join(
            sql.SQL("(SELECT count(*) FROM {})").format(sql.Identifier(f"g{oid}")) for oid in tables
        )
        chosen = [self._sequences[oid] for oid in moved]
        again = sql.SQL(", ({})").format(put_back(chosen)) if chosen else sql.SQL("")
        return sql.SQL("WITH {} SELECT concat_ws(',', {}){}").format(
            sql.SQL(", ").join(parts), counts, again
        )


def _most(recent: deque[frozenset[int]]) -> tuple[int, ...]:
    """Return, in order of oid, what is in half of the sets at least:
    tests of two kinds often take turns."""
    often = Counter(oid for found in recent for oid in found)
    return tuple(
        sorted(oid for oid, times in often.most_common(_TABLES) if times * 2 >= len(recent))
    )
