"""A lock between the processes of one machine: a file that one of them has locked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from .clock import wait_until


@contextlib.contextmanager
def file_lock(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock file for the block; wait up to `patience` seconds, then raise TimeoutError."""
    from filelock import FileLock, Timeout  # not needed, nor paid for, by who finds everything done

    lock = FileLock(path, mode=0o600)

    def is_acquired() -> bool:
        # Its own timeout would be measured by a clock that a test may have stopped.
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
        return lock.is_locked

    if not wait_until(is_acquired, patience, 0.02):
        raise TimeoutError(str(path))
    try:
        yield
    finally:
        lock.release()
