"""Whole suites: the demo's shop at three sizes, its tests isolated in different ways, as whole
pytest processes that take turns.

Control: no isolation, which is the same statements with values that no other test uses, and counts
that nobody asserts. Factors (do not change): the tests are the same, half of them touch 2 tables,
half all 8, and each asserts the rows of all 8 before and after; the application keeps its
connection between requests (a pool) for everybody but the reference recipe; the server runs
already; a process that fails, or runs another number of tests than it should, ends the part: an
isolation that leaks has no time.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dbclone
from dbclone.server.server import Server

from .pings import percentile, settings
from .places import DURABLE, Place, child_environment, file_system, say
from .shop import Broken

SIZES = (139, 199, 316)  # tests of the reference's three projects
WORKERS = (0, 2, 4)
FLOOR = "none"
_PATIENCE = 300  # seconds for one process; the slowest takes a quarter of it
CONTENDERS = {
    "recipe": "reference recipe",
    "kept": "create/drop, kept connection",
    "truncate_all": "TRUNCATE all",
    "truncate": "dbclone truncate",
    "rollback": "dbclone rollback",
    "auto": "dbclone auto",
    "clone": "dbclone clone",
    "drop": "dbclone drop",
    FLOOR: "no isolation (floor)",
}
RESETS = ("truncate", "rollback", "auto", "clone", "drop")
# By whether the server is the durable one: what is measured at every size and number of workers,
# and what again and again.
_ASKED = (
    ("recipe", "kept", "truncate_all", "truncate", "rollback", "auto", FLOOR),
    ("recipe", "truncate_all", "auto", FLOOR),
)
_AGAIN = (("truncate", "rollback", "auto", FLOOR), ("recipe", "auto", FLOOR))
_SELDOM = 3  # rounds, of which the durable server takes part in one: there the differences are larger, and take longer
# Seconds in series of 139, 199 and 316 tests, and with 4 workers, as the reference's author gives
# them.
PUBLISHED = {"0": (15.0, 20.0, 53.0), "4": (4.5, 7.0, 15.5)}
_HEAD = """from harness import add_product, expect, order, with_test_db
from shop.models import MODELS, Category, Product
"""
_PRODUCT = """

@with_test_db((Category, Product))
def test_product_{0}(client, names):
    expect((Category, Product))
    add_product(client, names)
    expect((Category, Product), 1, 1)
"""
_ORDER = """

@with_test_db(MODELS)
def test_order_{0}(client, names):
    expect(MODELS)
    order(client, names)
    expect(MODELS, 1, 1, 1, 3, 2, 1, 2, 1)
"""


def generate(folder: Path, size: int) -> None:
    """Write a project with so many tests into a new folder: the demo's shop, with a pool of
    connections."""
    shutil.copytree(
        Path(dbclone.__file__).parent / "demo" / "shop",
        folder / "shop",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    models = folder / "shop" / "models.py"
    text = models.read_text().replace(
        "PostgresqlDatabase(None, prefer",
        "PooledPostgresqlDatabase(None, max_connections=8, prefer",
    )
    models.write_text(
        text.replace(
            "    PostgresqlDatabase,\n)\n",
            ")\nfrom playhouse.pool import PooledPostgresqlDatabase\n",
        )
    )
    for name in ("conftest.py", "harness.py"):
        shutil.copy(Path(__file__).parent / "project" / name, folder / name)
    (folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\ntestpaths = ["tests"]\n'
    )
    (folder / "tests").mkdir()
    for start in range(0, size, 20):
        tests = [
            (_ORDER if number % 2 else _PRODUCT).format(number)
            for number in range(start, min(start + 20, size))
        ]
        (folder / "tests" / f"test_{start:03}.py").write_text(_HEAD + "".join(tests))


@dataclass(frozen=True)
class Cell:
    """What is measured as one process: a project of `size` tests, on a server, with so many
    workers, isolated in one way."""

    server: str
    size: int
    workers: int
    contender: str

    @property
    def shown(self) -> str:
        return f"{CONTENDERS.get(self.contender, self.contender)}, {self.size} tests, {self.workers} workers, {self.server}"

    def run(self, folder: Path, server: Server, place: Place) -> dict[str, float]:
        """Run the project in `folder` once. Raises Broken if not all tests passed."""
        results = place.folder / "results.xml"
        command = [
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-n",
            str(self.workers),
            f"--junitxml={results}",
        ]
        environ = {"BENCHMARK_CONTENDER": self.contender, "BENCHMARK_URL": server.dsn.url}
        if self.contender in RESETS:
            options = {
                "schema": "shop.models:MODELS",
                "bind": "shop.models:db",
                "name": f"{server.settings.project}suite",
            }
            options |= {"reset": self.contender, "autouse": "true", "strict": "true"}
            # As users have it: found in the cache if it is private, named by a URL if it is not.
            options |= {"url": server.dsn.url} if server.embedded is None else {}
            options |= {"cache_dir": str(server.settings.cache), "binaries": place.binaries}
            environ |= {f"DBCLONE_{key.upper()}": value for key, value in options.items() if value}
        else:
            command += ["-p", "no:dbclone"]
        results.unlink(missing_ok=True)
        started = time.perf_counter()
        how: dict[str, Any] = {"cwd": folder, "env": child_environment(**environ)}
        how |= {"capture_output": True, "text": True, "timeout": _PATIENCE}
        try:
            done = subprocess.run([sys.executable, "-m", *command], **how)
        except subprocess.TimeoutExpired:
            raise Broken(f"{self}: it did not end in {_PATIENCE} s") from None
        wall = time.perf_counter() - started
        times = _times(results)
        if done.returncode or len(times) != self.size:
            raise Broken(
                f"{self}: {len(times)} tests, exit status"
                f" {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
            )
        return {
            "wall_s": wall,
            "tests_s": sum(times),
            "median_ms": statistics.median(times) * 1000,
            "p95_ms": percentile(times, 0.95) * 1000,
            "p99_ms": percentile(times, 0.99) * 1000,
        }


def _times(results: Path) -> list[float]:
    """Return the seconds of every test that passed: set-up, call and tear-down."""
    try:
        root = ElementTree.parse(results).getroot()
    except (OSError, ElementTree.ParseError):
        return []
    return [float(case.get("time", "0")) for case in root.iter("testcase") if not len(case)]


def cells(servers: Sequence[str], quick: bool) -> list[Cell]:
    """Return what is measured, in the order of one round.

    What takes long and decides no goal is measured at the smallest size, and on the durable server
    without workers.
    """
    sizes, workers = ((24,), (0, 2)) if quick else (SIZES, WORKERS)
    found = []
    for server, size, number, contender in itertools.product(servers, sizes, workers, CONTENDERS):
        small = size == sizes[0] and (server != DURABLE or number == 0)
        wanted = contender in _ASKED[server == DURABLE] or small
        if quick and (number or server == DURABLE):
            wanted = contender in ("recipe", "auto", FLOOR) and not (number and server == DURABLE)
        if wanted:
            found.append(Cell(server, size, number, contender))
    return found


@dataclass
class Suites:
    """All cells and what has been measured of each."""

    place: Place
    servers: dict[str, Server]
    runs: dict[Cell, list[dict[str, float]]]
    folders: dict[int, Path] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Write the projects, and run each once, so that byte code is cached and templates are
        built."""
        for size in dict.fromkeys(cell.size for cell in self.runs):
            self.folders[size] = self.place.folder / f"shop{size}"
            generate(self.folders[size], size)
            for name in self.servers:
                self.once(Cell(name, size, 0, "auto"))

    def once(self, cell: Cell) -> dict[str, float]:
        return cell.run(self.folders[cell.size], self.servers[cell.server], self.place)

    def rounds(self) -> None:
        """Run what the goals need, then everything else once, then the former again and again, as
        long as there is time: contenders for the same take turns, and the floor is among them each
        time."""
        groups: dict[tuple[str, int, int], list[Cell]] = {}
        for cell in self.runs:
            groups.setdefault((cell.server, cell.size, cell.workers), []).append(cell)
        number, going = 0, True
        while going:
            going = number == 0
            for (server, size, workers), group in groups.items():
                again = [c for c in group if c.contender in _AGAIN[server == DURABLE]]
                rest = [c for c in group if c not in again]
                chosen = (
                    again
                    if number != 1
                    else rest and [*rest, *(c for c in again if c.contender == FLOOR)]
                )
                chosen = [c for c in chosen if c not in self.failed]
                if not chosen or (
                    number > 1 and (self.place.quick or (server == DURABLE and number % _SELDOM))
                ):
                    continue
                if number and self.place.left < sum(self.expected(c) for c in chosen):
                    self.failed |= {c: "there was no time left" for c in rest if number == 1}
                    continue
                say(f"suites, round {number + 1}: {size} tests, {workers} workers, {server}")
                for cell in chosen:
                    say(f"    {cell.contender}", passing=True)
                    try:
                        self.runs[cell].append({"round": number, **self.once(cell)})
                    except (
                        Broken
                    ) as error:  # it has no time, not even the one it may have had before
                        say(str(error))
                        self.failed[cell] = str(error)
                        self.runs[cell].clear()
                going = True
                self.place.partial = self.data()
            number += 1

    def expected(self, cell: Cell) -> float:
        """Return how many seconds a cell will take, about: what it took, or somewhat more than the
        others of its size."""
        known = self.runs[cell] or [
            run for other, runs in self.runs.items() if other.size == cell.size for run in runs
        ]
        return 1.2 * max((run["wall_s"] for run in known), default=0.0)

    def data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "servers": {
                name: {**settings(server), "file_system": _file_system(server)}
                for name, server in self.servers.items()
            },
            "published": PUBLISHED,
            "contenders": CONTENDERS,
            "cells": [
                {
                    "server": c.server,
                    "size": c.size,
                    "workers": c.workers,
                    "contender": c.contender,
                    "runs": list(found),
                }
                for c, found in self.runs.items()
            ],
            "left_out": [
                f"{cell.shown}: {text.strip().splitlines()[-1]}"
                for cell, text in self.failed.items()
            ],
        }


def measure(place: Place) -> dict[str, Any]:
    """Run all cells in turns, the goals' ones again as long as there is time, and return everything
    as plain data."""
    with place.servers() as servers:
        suites = Suites(place, servers, {cell: [] for cell in cells(list(servers), place.quick)})
        suites.prepare()
        suites.rounds()
        return suites.data()


def _file_system(server: Server) -> str:
    """Return what the data of a server of ours are on."""
    ((folder,),) = server.fetch("SELECT current_setting('data_directory')")
    return file_system(Path(str(folder)))
