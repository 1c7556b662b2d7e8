"""Many worker processes on one server at once, and whether the ten-thousandth reset costs what the
first did.

Control: the same with one worker. Factors (do not change): every worker is a process with a clone
of its own, and all begin a round at the same moment; a test writes to three of 30 tables and is
checked by the keys that its rows get (`truncate`) or by their being unique (`rollback`); its time
is that of the whole test, writes included. What is counted is tests a second of all workers
together.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dbclone.databases import ddl
from dbclone.server.server import Server
from dbclone.template.template import Template

from .pings import percentile, settings
from .places import EMBEDDED, GIVEN, ROOT, Place, child_environment, say
from .shop import Shop
from .wear import worn

WORKERS = (1, 2, 4, 8, 16, 32, 64)
TABLES = 30
RESETS = ("rollback", "truncate")
_SESSIONS = (
    3  # that a worker has: one that makes clones, one that controls resets, the application's
)


class Failed(Exception):
    """A worker ended before its time; the text is the first line of its error."""


@dataclass
class Worker:
    """A process that runs tests when it is told to."""

    process: subprocess.Popen[str]

    def tell(self, what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            said = self.process.stderr.read().strip().splitlines()
            raise Failed(
                next(
                    (line for line in said if line.startswith("dbclone.")),
                    said[-1] if said else "no word",
                )
            )
        return dict(json.loads(line))


@contextlib.contextmanager
def crew(server: Server, place: Place, count: int) -> Iterator[list[Worker]]:
    """Yield so many workers that have not yet been told anything; none of them lives at the end."""
    workers = []
    try:
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scale_worker"],
                cwd=ROOT,
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            workers.append(Worker(process))
            options = {
                "url": server.dsn.url,
                "cache_dir": str(server.settings.cache),
                "name": server.settings.project,
            }
            workers[-1].tell(
                {
                    "tables": TABLES,
                    "folder": str(place.folder),
                    "options": options,
                    "owner": f"w{number}",
                }
            )
        yield workers
    finally:
        for worker in workers:
            with contextlib.suppress(OSError):
                worker.process.stdin.close()  # type: ignore[union-attr]
        for worker in workers:
            try:
                worker.process.wait(30)
            except subprocess.TimeoutExpired:
                worker.process.kill()
            for stream in (worker.process.stdout, worker.process.stderr):
                if stream is not None:
                    stream.close()


def measure(place: Place) -> dict[str, Any]:
    """Measure crews of growing size, and then the wear of many resets of one clone."""
    seconds, rounds = (0.3, 1) if place.quick else (1.5, 2)
    rows: list[dict[str, Any]] = []
    left_out = []
    with place.server() as server:
        shop = Shop(TABLES)
        template = Template.ensure(server, shop)
        for count in (1, 2, 8) if place.quick else WORKERS:
            for reset in RESETS:
                if count * _SESSIONS > server.facts.max_connections - 3:
                    left_out.append(
                        f"{count} workers: the server admits {server.facts.max_connections}"
                        f" connections"
                    )
                    continue
                say(f"scale: {count} workers, {reset}")
                started = time.perf_counter()
                try:
                    with (
                        crew(server, place, count) as workers
                    ):  # a new one for each reset: the sessions of both would be too many
                        clones = [worker.answer()["clone_s"] * 1000 for worker in workers]
                        told = {
                            "workers": count,
                            "reset": reset,
                            "ready_s": time.perf_counter() - started,
                        }
                        told |= {
                            "clone_median_ms": statistics.median(clones),
                            "clone_max_ms": max(clones),
                        }
                        _round(
                            workers, reset, 0
                        )  # the first test opens connections and learns the schema
                        for number in range(rounds):
                            rows.append(
                                {**told, "round": number, **_round(workers, reset, seconds)}
                            )
                except Failed as error:
                    left_out.append(f"{count} workers, {reset}: {error}")
        total = 300 if place.quick else 10_000
        wear = [
            worn(server, template, shop, reset, total, say) for reset in ("truncate", "rollback")
        ]
        found = settings(server)
        ddl.drop(server, template.database)
    return {
        "servers": {GIVEN if place.url else EMBEDDED: found},
        "rows": rows,
        "wear": wear,
        "left_out": left_out,
    }


def _round(workers: list[Worker], reset: str, seconds: float) -> dict[str, float]:
    """Let all workers run tests for so long, and return what they did together."""
    for worker in workers:
        worker.tell([reset, seconds])
    answers = [worker.answer() for worker in workers]
    times = [taken for answer in answers for taken in answer["times"]]
    return {
        "tests": len(times),
        "tests_per_s": sum(len(answer["times"]) / answer["seconds"] for answer in answers),
        "median_ms": statistics.median(times) * 1000,
        "p95_ms": percentile(times, 0.95) * 1000,
        "p99_ms": percentile(times, 0.99) * 1000,
    }
