"""A lock between the processes of one machine: a file that one of them has locked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from .clock import monotonic


@contextlib.contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock file for the block; wait up to `patience` seconds, then raise TimeoutError."""
    from filelock import FileLock, Timeout  # not needed, nor paid for, by who finds everything done

    lock, deadline = FileLock(path, mode=0o600), monotonic() + patience
    while True:
        try:
            # Its own timeout would be measured by a clock that a test may have stopped
            lock.acquire(blocking=False)
            break
        except Timeout:
            if monotonic() > deadline:
                raise TimeoutError(str(path)) from None
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.release()
