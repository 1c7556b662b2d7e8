"""Advisory locks of the administrative connection: locks for a block, places in a limited number,
and leases for a life.

All are session-level locks in the maintenance database, so that they end with whoever held them,
whatever killed it (PostgreSQL documentation, explicit-locking, "Advisory Locks").
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg

from ..process.clock import monotonic, wait_until


def lock_key(name: str) -> int:
    """Return the 64-bit advisory lock key that stands for `name`, the same on every machine."""
    return int.from_bytes(
        hashlib.sha256(b"dbclone\0" + name.encode()).digest()[:8], "big", signed=True
    )


@dataclass
class Leases:
    """The locks held through one autocommit connection to the maintenance database."""

    connection: psycopg.Connection[tuple[Any, ...]]
    # By name, whether it is shared
    _taken: dict[str, bool] = field(default_factory=dict, repr=False)

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float) -> Iterator[None]:
        """Hold the advisory lock `name` for the block; wait up to `timeout` seconds,
        then raise TimeoutError."""
        key = lock_key(name)
        if not wait_until(lambda: self._try_lock(key), timeout, 0.005, longest=0.1):
            raise TimeoutError(name)
        try:
            yield
        finally:
            self._unlock(key)

    @contextlib.contextmanager
    def slot(self, purpose: str, limit: int, timeout: float) -> Iterator[None]:
        """Hold one of `limit` places for the block, so that few do `purpose` on this server at
        once, however many want to.

        Waits up to `timeout` seconds, then goes on without: the cap spares the server, nothing
        depends on it.
        """
        keys = [lock_key(f"{purpose} slot {number}") for number in range(limit)]
        held = wait_until(
            lambda: [*itertools.islice(filter(self._try_lock, keys), 1)],
            timeout,
            0.002,
            longest=0.05,
        )
        try:
            yield
        finally:
            for key in held:
                self._unlock(key)

    def acquire(self, name: str, shared: bool = False, patience: float = 0.0) -> bool:
        """Take the lease `name` for as long as this connection lives; return False if somebody else
        holds it.

        Arguments: `patience`, seconds to try again: a prune elsewhere holds the lease of what it
        takes for dead, for a moment.
        """
        if name in self._taken:
            return True  # the server counts locks: taken twice, it would outlive `release`
        taken = wait_until(lambda: self._try_lock(lock_key(name), shared), patience)
        if taken:
            self._taken[name] = shared
        return taken

    def holds(self, name: str) -> bool:
        """Return whether this connection has the lease `name`."""
        return name in self._taken

    def reacquire(self, connection: psycopg.Connection[tuple[Any, ...]], deadline: float) -> None:
        """Hold all leases through another connection, because this one was lost.

        The server may need a moment to notice that the old session has ended. Raises TimeoutError
        with the name of a lease that somebody has at the `deadline` of the monotonic clock still.
        """
        self.connection = connection
        for name, shared in self._taken.items():
            attempt = partial(self._try_lock, lock_key(name), shared)
            if not wait_until(attempt, deadline - monotonic(), 0.02):
                raise TimeoutError(name)

    def release(self, name: str, shared: bool = False) -> None:
        """Give up a lease that `acquire` took."""
        if name in self._taken:
            del self._taken[name]
            self._unlock(lock_key(name), shared)

    def held(self) -> set[int]:
        """Return the keys of all advisory locks held on this server, by anybody: a lease whose key
        is not among them is dead."""
        rows = self._fetch(
            "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks"
            # Of every database: a run whose role may not enter the usual maintenance database takes
            # its locks in another.
            " WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
        )
        return {int(row[0]) for row in rows}

    def holder(self, name: str) -> str:
        """Return who holds the advisory lock `name`, in words."""
        key = lock_key(name) & (2**64 - 1)
        rows = self._fetch(
            "SELECT a.pid, a.application_name, extract(epoch FROM now() - a.backend_start)::int"
            " FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
            " AND l.objsubid = 1 AND l.granted AND l.classid = %s::bigint::oid"
            " AND l.objid = %s::bigint::oid",
            [key >> 32, key & 0xFFFFFFFF],
        )
        return (
            ", ".join(
                f"{application or 'a session'} (server process {pid}, for {age} s)"
                for pid, application, age in rows
            )
            or "nobody now"
        )

    def _try_lock(self, key: int, shared: bool = False) -> bool:
        function = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
        return bool(self._fetch(f"SELECT {function}(%s)", [key])[0][0])

    def _unlock(self, key: int, shared: bool = False) -> None:
        if not self.connection.closed:
            function = "pg_advisory_unlock_shared" if shared else "pg_advisory_unlock"
            with contextlib.suppress(psycopg.OperationalError):
                self._fetch(f"SELECT {function}(%s)", [key])

    def _fetch(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), parameters).fetchall()
