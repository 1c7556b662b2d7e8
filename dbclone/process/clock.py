"""Clocks that a test cannot stop, and waiting by them.

freezegun replaces the functions of the `time` module wherever they have been imported, time-machine
replaces what they do. Neither stops the system's monotonic clock asked by its number, so deadlines
pass and durations are true in a test with a frozen clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def monotonic() -> float:
    """Return seconds of a clock that only goes forward."""
    if sys.platform == "win32":
        return time.monotonic()
    return time.clock_gettime(time.CLOCK_MONOTONIC)


_START = time.time() - monotonic()


def wall() -> float:
    """Return the seconds since 1970, as they passed since this module was imported: before any
    test, by pytest's plugin."""
    return _START + monotonic()


def wait_until(
    condition: Callable[[], T], timeout: float, pause: float = 0.01, longest: float = 0.0
) -> T:
    """Ask `condition` until its answer is true or the time is over; return its last answer.

    It is asked at once, again after each `pause`, and a last time when `timeout` seconds are over:
    whoever was held up for long still sees what came true meanwhile. Arguments: `pause`, seconds,
    half as long again each time up to `longest` if that is more. Raises what `condition` raises.
    """
    return _wait(condition, True, timeout, pause, longest)


def wait_while(condition: Callable[[], T], timeout: float, pause: float = 0.01) -> T:
    """As `wait_until`, the other way round: until the answer is false, such as who is left."""
    return _wait(condition, False, timeout, pause, 0.0)


def _wait(
    condition: Callable[[], T], wanted: bool, timeout: float, pause: float, longest: float
) -> T:
    deadline = monotonic() + timeout
    while True:
        late = monotonic() >= deadline  # looked at first, so that a last question comes after it
        answer = condition()
        if bool(answer) is wanted or late:
            return answer
        time.sleep(pause)
        pause = max(pause, min(pause * 1.5, longest))
