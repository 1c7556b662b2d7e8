"""What a long build or wait tells a person: whole lines, not too many, and nothing about the first second."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable


class Progress:
    """Passes on what is being done, with the seconds since the start.

    Arguments: `write`, takes one line; `every`, seconds between two lines. Called with a text at each step.
    """

    def __init__(self, write: Callable[[str], None], every: float = 1.0) -> None:
        self._write, self._every = write, every
        self._start = self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now - self._start >= 1.0 and now - self._last >= self._every:
            self._last = now
            self._write(f"dbclone: {text} ({now - self._start:.0f} s)")


class Line:
    """Writes to standard error: on a terminal over the last line, elsewhere line after line."""

    def __init__(self) -> None:
        self.in_place = sys.stderr.isatty()
        self._width = 0

    def write(self, text: str) -> None:
        """Show one line."""
        if self.in_place:
            text = text[: shutil.get_terminal_size().columns - 1]
            print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave an empty line on a terminal."""
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
