"""reset = none: what a test writes stays, and every later reset knows that."""

from __future__ import annotations

from .base import Committing, Outcome
from .state import Event


class Untouched(Committing):
    """Undo nothing."""

    name = "none"

    def undo(self) -> Outcome:
        self.host.state.note(Event.LEFT)
        return Outcome(self.name, 0.0)
