"""How a test's writes are undone. These rooms know a connection and catalogue facts, and no clone: they work on any database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .transactions import Moment, Verdict


@dataclass(frozen=True)
class Outcome:
    """What a reset did.

    `reset`, which one; `seconds`, how long it took; `tables`, how many tables it found written; `spoiled`, why the database is not
    equal to its template any more and has to be replaced (empty: it is equal); `verdict`, whether somebody on the
    server committed something meanwhile, and it is not known where; `begun`, when the test began; `notes`, what a person should
    know.
    """

    reset: str
    seconds: float
    tables: int = 0
    spoiled: str = ""
    verdict: Verdict = Verdict.NOTHING
    begun: Moment | None = None
    notes: tuple[str, ...] = ()


class Reset(Protocol):
    """One way to undo a test: `before` it and `after` it, each bounded in round trips.

    `after` undoes whatever the test did, however the test ended, or says in its Outcome that the database must be replaced.
    """

    def before(self) -> None: ...

    def after(self) -> Outcome: ...


def pick(wanted: str) -> str:
    """Return the reset that a setting or marker means: `auto` starts with the fastest, rollback."""
    return "rollback" if wanted == "auto" else wanted
