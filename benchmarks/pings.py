"""What benchmarks measure with: the price of one round trip, summaries of samples, and what the
machine and the server are."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import psycopg

from dbclone.server.server import Server

# Settings that decide what a commit, a copy or a new file costs; those that a version does not know
# are left out.
_SETTINGS = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_level", "autovacuum", "shared_buffers", "max_connections", "jit",
    "io_method", "file_copy_method",
)  # fmt: skip


@dataclass
class Ping:
    """The price of one round trip: SELECT 1, prepared, over a kept psycopg connection.

    Arguments: `url`, tells where the database is. If the database was replaced, the next ping
    connects again.
    """

    url: Callable[[], str]
    _connection: psycopg.Connection[Any] | None = field(default=None, repr=False)

    def __call__(self) -> float:
        """Return how many seconds a round trip takes."""
        try:
            return self._once()
        except psycopg.OperationalError:
            self.close()
            return self._once()

    def _once(self) -> float:
        if self._connection is None:
            self._connection = psycopg.connect(self.url(), autocommit=True)
            for _ in range(5):
                self._connection.execute("SELECT 1", prepare=True).fetchone()
        started = time.perf_counter()
        self._connection.execute("SELECT 1", prepare=True).fetchone()
        return time.perf_counter() - started

    def close(self) -> None:
        """Leave the database to others, until the next ping."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass
class Run:
    """What one run of one case gave, in seconds: `samples`, and the `pings` taken between them.
    `looks` says how many rows differed from the template before and after the writes of the first
    block, and then of the last; `clones`, how many copies were used."""

    samples: list[float] = field(default_factory=list)
    pings: list[float] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    clones: int = 1


@dataclass(frozen=True)
class Figures:
    """Several runs summed up, in milliseconds, and `pings` as a multiple of the median ping."""

    median: float
    p95: float
    p99: float
    count: int
    lowest: float  # median of a run
    highest: float
    ping: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Figures:
        """Sum up runs that have at least one sample and one ping each."""
        samples = [sample for run in runs for sample in run.samples]
        medians = [statistics.median(run.samples) for run in runs]
        ping = statistics.median(ping for run in runs for ping in run.pings)
        median, p95, p99 = (
            statistics.median(samples) * 1000,
            percentile(samples, 0.95) * 1000,
            percentile(samples, 0.99) * 1000,
        )
        return cls(
            median, p95, p99, len(samples), min(medians) * 1000, max(medians) * 1000, ping * 1000
        )

    @property
    def pings(self) -> float:
        return self.median / self.ping

    def data(self) -> dict[str, float]:
        """Return the figures as plain data."""
        return {
            "median_ms": self.median,
            "p95_ms": self.p95,
            "p99_ms": self.p99,
            "samples": self.count,
            "lowest_median_ms": self.lowest,
            "highest_median_ms": self.highest,
            "ping_ms": self.ping,
            "median_pings": self.pings,
            "p95_pings": self.p95 / self.ping,
        }


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least this share of all samples does not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def cores(pid: int = 0) -> int:
    """Return how many cores a process, by default this one, may run on; 0 where that cannot be
    told."""
    try:
        return len(os.sched_getaffinity(pid))
    except (AttributeError, OSError):
        return 0


def machine() -> dict[str, Any]:
    """Return what this machine is, and what runs on it."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
        "python": platform.python_version(),
        "dbclone": version("pytest-dbclone"),
        "psycopg": f"{version('psycopg')} ({psycopg.pq.__impl__})",
        "libpq": psycopg.pq.version(),
    }


def settings(server: Server) -> dict[str, str]:
    """Return what a server is, and those of its settings that decide what things cost."""
    found = {
        "version": server.version,
        "where": "a private server" if server.embedded else "a server of its own",
    }
    rows = server.fetch(
        "SELECT name::text, current_setting(name) FROM pg_settings WHERE name = ANY(%s)",
        [list(_SETTINGS)],
    )
    values = dict(rows)
    return {**found, **{name: str(values[name]) for name in _SETTINGS if name in values}}


def quiet(server: Server, patience: float = 10.0) -> None:
    """Wait until no session of dbclone is at work on the server, such as the one that makes clones
    ahead in the background."""
    calm, deadline = 0, time.monotonic() + patience
    while calm < 3 and time.monotonic() < deadline:
        ((busy,),) = server.fetch(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name ~ '^dbclone' AND state <> 'idle' AND pid <> pg_backend_pid()"
        )
        calm = 0 if busy else calm + 1
        time.sleep(0.003)
