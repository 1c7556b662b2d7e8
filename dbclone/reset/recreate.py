"""reset = clone: each test gets a fresh copy of the template."""

from __future__ import annotations

from ..process.clock import monotonic
from .base import Committing, Outcome


class Recreate(Committing):
    """Undo by putting a fresh copy in the place of the database."""

    name = "clone"

    def undo(self) -> Outcome:
        started = monotonic()
        self.host.replace("a test that wanted a fresh clone", quiet=True, often=True)
        return Outcome(self.name, monotonic() - started)
