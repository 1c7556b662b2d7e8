"""Clocks that a test cannot stop.

freezegun replaces the functions of the `time` module wherever they have been imported, time-machine
replaces what they do. Neither stops the system's monotonic clock asked by its number, so deadlines
pass and durations are true in a test with a frozen clock.
"""

from __future__ import annotations

import sys
import time


def monotonic() -> float:
    """Return seconds of a clock that only goes forward."""
    if sys.platform == "win32":
        return time.monotonic()
    return time.clock_gettime(time.CLOCK_MONOTONIC)


_START = time.time() - monotonic()


def wall() -> float:
    """Return the seconds since 1970, as they passed since this room was first entered: before any
    test, by pytest's plugin."""
    return _START + monotonic()
