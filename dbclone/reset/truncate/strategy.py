"""reset = truncate: tests commit for real, and what they wrote is put back."""

from __future__ import annotations

import psycopg

from ...errors import ServerError
from ..base import Committing, Outcome, failure


class Truncate(Committing):
    """Undo by putting back what was written."""

    name = "truncate"

    def begin(self) -> None:
        super().begin()
        state = self.host.state
        put_back = state.put_back()
        if state.sequences_moved:
            put_back.restore_sequences()  # earlier rollbacks left them where they were
            state.sequences_moved = False

    def undo(self) -> Outcome:
        try:
            return self.host.state.put_back().run()
        except (psycopg.Error, ServerError) as error:
            return Outcome(self.name, 0.0, spoiled=f"{type(error).__name__}: {failure(error)}")
        except BaseException:
            # The next test must not find what this one left
            self.host.replace("a reset that failed", quiet=True)
            raise
