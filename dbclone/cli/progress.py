"""What a long build or wait tells a person: whole lines, not too many, and nothing about the first
second."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import printable
from ..process.clock import monotonic


class Progress:
    """Passes on what is being done, with the seconds since the start; again and again while one
    step takes long.

    Arguments: `write`, takes one line; `every`, seconds between two lines. Call it with a text at
    each step, inside a `with` block.
    """

    def __init__(self, write: Callable[[str], None], every: float = 1.0) -> None:
        self._write, self._every = write, every
        self._start = monotonic()
        self._text = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="dbclone progress", daemon=True)

    def __call__(self, text: str) -> None:
        self._text = text

    def _repeat(self) -> None:
        # The step that runs may be a single statement or command: nobody but a clock of our own can
        # say that it still does.
        if self._done.wait(1.0):
            return
        while True:
            if self._text:
                self._write(f"dbclone: {printable(self._text)} ({monotonic() - self._start:.0f} s)")
            if self._done.wait(self._every):
                return

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


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


@contextlib.contextmanager
def on_terminal() -> Iterator[Progress]:
    """Yield a Progress that a person reads on standard error; on a terminal nothing of it stays."""
    line = Line()
    try:
        with Progress(line.write, 0.1 if line.in_place else 1.0) as progress:
            yield progress
    finally:
        line.clear()


def say(arguments: argparse.Namespace, facts: dict[str, Any], lines: Sequence[str]) -> None:
    """Print facts as JSON or lines of text, as was asked."""
    print(
        json.dumps(facts, indent=2, sort_keys=True)
        if arguments.json
        else "\n".join(map(printable, lines))
    )
