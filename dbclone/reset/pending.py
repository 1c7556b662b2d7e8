"""A statement that an asyncio task waits for, and that a thread may finish for it."""

from __future__ import annotations

import selectors
from typing import Any

from psycopg.waiting import Ready, Wait

from ..clock import monotonic


class Statement:
    """A generator of psycopg that a task waits for, and that another may finish for it; the task then finds its outcome."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._wait = Wait.R
        self._end: BaseException | None = None

    def __iter__(self) -> Statement:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, ready: Any) -> Any:
        """Go on, as the generator would."""
        if self._end is None:
            try:
                self._wait = self._generator.send(ready)
                return self._wait
            except BaseException as end:
                self._end = end
        raise self._end

    def finish(self, socket: int, deadline: float) -> bool:
        """Run to the end without an event loop; return whether it ended before the deadline (on the monotonic clock)."""
        while self._end is None and monotonic() < deadline:
            with selectors.DefaultSelector() as selector:
                selector.register(socket, int(self._wait))
                found = selector.select(0.1)
            try:
                self.send(Ready(found[0][1]) if found else 0)
            except BaseException:  # it is the task's, who finds it
                break
        return self._end is not None
