"""What a reset costs: putting a database back to its template after a test, and what else a project
could do instead.

Goal (in `cases`; the table says which were met): nothing written, at most 2 pings; 3 of 30 tables,
at most 5 pings and 30 times cheaper than TRUNCATE of all; 3 of 200, at most 2.5 ms and 100 times
cheaper; 3 of 1,000, at most 10 ms; one changed row among 1,000 seeded, at most 10 pings, among
1,000,000 cheaper than a fresh clone; a rollback with its audit, at most 4 pings; 10,000 resets
later the same plans. Control: a ping, which is SELECT 1, prepared, over a psycopg connection to the
same clone, taken before each sample; and plain statements over a kept connection (TRUNCATE, DELETE,
create and drop of all tables), and a fresh clone. Factors (do not change): the cost of a reset is
the time in `clone.isolated(…).__enter__` and in its `__exit__`; what the test does in between is
not counted. Tables have a serial key, a text column with an index, and two of three a foreign key.
The application keeps its connection, except under rollback, clone and where the clone may be
replaced. Cases take turns, A B C A B C, each with a few tests that are not counted, because the
others leave caches cold and make the server plan anew, and then up to 20 that are, while nothing
goes on in the background. Every test is checked: it must find its template, and must have written;
how many rows differed at the start and the end of a run is in the JSON. Environment: printed, and
in the JSON. When client and server wake each other across cores, the scheduler may add tens of
microseconds to every round trip, or not, as it likes: pings then have two peaks. So --pin measures
both ways, by turns: all cores free, and everything, the server included, pinned to one core.
Figures are medians of all samples of all runs, with the least and the greatest median of a run;
with --quick, tables, rows and samples are few, and figures mean nothing. Parameters: --quick,
--runs, --pin, --server, --binaries, --json FILE (every sample is in it).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dbclone.databases import ddl
from dbclone.server.server import Server
from dbclone.template.template import Template

from .cases import FRESH, Case
from .goals import Cheaper, Goal, Milliseconds, Pings, judged
from .pings import Figures, Run, cores, machine, settings
from .places import Place, say
from .shop import Shop, reads, updates
from .wear import worn


@dataclass(frozen=True)
class Sizes:
    """How much there is: tables of three templates, seeded rows of two more, and how often
    everything is done."""

    small: int = 30
    middle: int = 200
    large: int = 1000
    few: int = 1000
    many: int = 1_000_000
    rounds: int = 10
    burst: int = 20  # at most
    wear: int = 10_000


QUICK = Sizes(30, 36, 48, 1000, 5000, 1, 5, 300)


def cases(sizes: Sizes) -> list[Case]:
    """Return all cases, with their goals."""
    small, middle, large = Shop(sizes.small), Shop(sizes.middle), Shop(sizes.large)
    some, many = Shop(sizes.small, sizes.few), Shop(sizes.small, sizes.many)
    all_small, all_middle = f"TRUNCATE of all {sizes.small}", f"TRUNCATE of all {sizes.middle}"
    copied = f"fresh clone, {sizes.many:,} seeded"
    once, few = {"burst": 1, "warm": 1}, {"burst": 2, "warm": 1}

    def of(shop: Shop, rows: str) -> str:
        return f"{rows} of {shop.tables:,} tables written"

    def case(name: str, shop: Shop, reset: str, *goals: Goal, **options: Any) -> Case:
        found = Case(name, shop, reset, goals=goals, **options)
        return replace(
            found, burst=min(found.burst, sizes.burst), warm=min(found.warm, sizes.burst // 4)
        )

    return [
        case(f"nothing written, {sizes.small} tables", small, "truncate", Pings(2), write=reads),
        case("nothing written, but elsewhere", small, "truncate", write=reads, busy=True),
        case(of(small, "3"), small, "truncate", Pings(5), Cheaper(30, all_small)),
        case(of(small, "3") + ", and elsewhere", small, "truncate", busy=True),
        case(of(small, "3") + ", own connection", small, "truncate", alone=True),
        case(of(middle, "3"), middle, "truncate", Milliseconds(2.5), Cheaper(100, all_middle)),
        case(of(large, "3"), large, "truncate", Milliseconds(10), burst=5),
        case(f"1 row of {sizes.few:,} seeded changed", some, "truncate", Pings(10), write=updates),
        case(
            f"1 row of {sizes.many:,} seeded changed",
            many,
            "truncate",
            Cheaper(1, copied),
            write=updates,
            alone=True,
            **few,
        ),
        case("rollback, nothing written", small, "rollback", Pings(4), write=reads),
        case("rollback, 3 tables written", small, "rollback", Pings(4)),
        case("rollback, 3 tables, and elsewhere", small, "rollback", busy=True),
        case("clone, a warm one is ready", small, "clone", alone=True, patient=True, **few),
        case("clone, no time to make one ahead", small, "clone", alone=True, burst=5, warm=1),
        case("drop", small, "drop", **once),
        case(all_small, small, "truncate all", **once),
        case(all_middle, middle, "truncate all", **once),
        case(f"DELETE of all {sizes.small}", small, "delete all"),
        case(f"create and drop of all {sizes.small}", small, "recreate all", **once),
        case(f"fresh clone, {sizes.small} tables", small, FRESH, **once),
        case(copied, many, FRESH, **once),
    ]


@dataclass
class Way:
    """A server and what was measured there: with everything `pinned` to one core, or with all cores
    free."""

    pinned: bool
    core: set[int]
    server: Server
    templates: dict[Shop, Template] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    wear: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, chosen: list[Case], rounds: int) -> None:
        """Add one run: all cases in turns, each in a clone of its own."""
        with affinity(self.core), contextlib.ExitStack() as stack:
            found = {
                case.name: (
                    stack.enter_context(case.opened(self.server, self.templates[case.shop])),
                    Run(),
                )
                for case in chosen
            }
            for number in range(rounds):
                for name, (contender, run) in found.items():
                    say(
                        f"{self.name}, run {len(self.runs.get(name, ())) + 1}, round"
                        f" {number + 1} of {rounds}: {name}",
                        passing=True,
                    )
                    contender.burst(self.server, run)
            for name, (contender, run) in found.items():
                contender.finish(run)
                self.runs.setdefault(name, []).append(run)

    @property
    def name(self) -> str:
        return "pinned to one core" if self.pinned else "all cores free"

    def data(self, chosen: list[Case]) -> dict[str, Any]:
        """Return everything as plain data, the goals judged."""
        figures = {name: Figures.of(runs) for name, runs in self.runs.items()}
        embedded = self.server.embedded
        return {
            "pinned": self.pinned,
            "server_cores": cores(embedded.cluster.pid() or 0) if embedded is not None else 0,
            "server": settings(self.server),
            "cases": [
                {
                    "name": case.name,
                    "reset": case.reset,
                    "written": case.written,
                    "skipped": case.refused,
                }
                if case.name not in figures
                else {
                    "name": case.name,
                    "reset": case.reset,
                    "written": case.written,
                    "skipped": "",
                    **figures[case.name].data(),
                    "goals": judged(case.goals, figures[case.name], figures),
                    "runs": [asdict(run) for run in self.runs[case.name]],
                }
                for case in chosen
            ],
            "wear": self.wear,
        }


@contextlib.contextmanager
def affinity(wanted: set[int]) -> Iterator[None]:
    """Run this process, and what it starts, on these cores for the block; anywhere if there are
    none."""
    before = os.sched_getaffinity(0) if wanted else set()
    if wanted:
        os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        if wanted:
            os.sched_setaffinity(0, before)


@contextlib.contextmanager
def prepared(place: Place, pinned: bool, chosen: list[Case]) -> Iterator[Way]:
    """Yield a server with all templates; at the end nothing of it is left."""
    core = {max(os.sched_getaffinity(0))} if pinned else set()
    with contextlib.ExitStack() as stack:
        with affinity(core):
            way = Way(pinned, core, stack.enter_context(place.server()))
            for shop in dict.fromkeys(case.shop for case in chosen):
                say(f"{way.name}: a template of {shop.tables:,} tables and {shop.seeds:,} rows")
                way.templates[shop] = Template.ensure(way.server, shop)
                stack.callback(ddl.drop, way.server, way.templates[shop].database)
        yield way


def table(data: dict[str, Any]) -> list[str]:
    """Return the lines that show one way of measuring, as `Way.data` has it."""
    server = data["server"]
    lines = [
        f"{'pinned to one core' if data['pinned'] else 'all cores free'}; PostgreSQL"
        f" {server['version']},"
        f" fsync {server['fsync']}, autovacuum {server['autovacuum']}",
        f"{'':42} {'median':>8} {'p95':>8} {'least and greatest':>20} {'ping':>7}"
        f" {'median':>8} {'p95':>8}",
        f"{'':42} {'ms':>8} {'ms':>8} {'median of a run, ms':>20} {'ms':>7} {'pings':>8}"
        f" {'pings':>8}  goal",
    ]
    for case in data["cases"]:
        if case["skipped"]:
            lines.append(f"{case['name']:42} skipped: {case['skipped']}")
            continue
        spread = f"{case['lowest_median_ms']:.3f} .. {case['highest_median_ms']:.3f}"
        goals = [
            f"{'met   ' if g['met'] else 'MISSED'} {g['goal']}: {g['reached']}"
            for g in case["goals"]
        ]
        lines.append(
            (
                f"{case['name']:42} {case['median_ms']:8.3f} {case['p95_ms']:8.3f} {spread:>20}"
                f" {case['ping_ms']:7.3f} {case['median_pings']:8.1f} {case['p95_pings']:8.1f} "
                f" {goals[0] if goals else ''}"
            ).rstrip()
        )
        lines += [f"{'':108} {goal}" for goal in goals[1:]]
    for wear in data["wear"]:
        before, fresh, after = (wear[f"probe_{when}"] for when in ("before", "fresh", "after"))
        lines += [
            f"{wear['name']}: median of {wear['head']} in a fresh clone {wear['first_ms']:.3f} ms,"
            f" of the last ones by turns {wear['last_ms']:.3f} ms, {wear['ratio']:.2f} x;"
            f" worst {wear['worst_ms']:.1f} ms",
            f"    {'met   ' if wear['same_plan'] else 'MISSED'} the same plan of a join"
            f" before and after; ms and pages:"
            f" {before['query_ms']:.3f} {before['pages']} before, {after['query_ms']:.3f}"
            f" {after['pages']} after,"
            f" {fresh['query_ms']:.3f} {fresh['pages']} after it in a fresh clone",
        ]
    return lines


def main() -> None:
    """Measure, print the table, and write the JSON if it is wanted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reset_costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it works")
    parser.add_argument("--runs", type=int, help="default 5, quick 2")
    parser.add_argument(
        "--pin",
        action="store_true",
        help="also with everything on one core; private server on Linux only",
    )
    parser.add_argument(
        "--server",
        default="embedded",
        metavar="URL",
        help="an existing server instead of a private one",
    )
    parser.add_argument(
        "--binaries",
        default="",
        metavar="FOLDER",
        help="of initdb and postgres for the private server",
    )
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.pin and (arguments.server != "embedded" or not hasattr(os, "sched_setaffinity")):
        parser.error("--pin needs a private server, and Linux")
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # what leads libpq elsewhere
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    sizes, runs = (
        QUICK if arguments.quick else Sizes(),
        arguments.runs or (2 if arguments.quick else 5),
    )
    chosen, started = cases(sizes), time.time()
    found: dict[str, Any] = {
        "quick": arguments.quick,
        "sizes": asdict(sizes),
        "runs": runs,
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        ways = []
        for pinned in (False, True) if arguments.pin else (False,):
            folder = Path(place, "pinned" if pinned else "free")
            folder.mkdir()
            url = "" if arguments.server == "embedded" else arguments.server
            where = Place(folder, arguments.quick, url, arguments.binaries)
            ways.append(stack.enter_context(prepared(where, pinned, chosen)))
        for number in range(runs):
            for way in ways:
                say(f"{way.name}, run {number + 1} of {runs}")
                way.measure([case for case in chosen if not case.refused], sizes.rounds)
        small = Shop(sizes.small)
        for reset in ("truncate", "rollback"):
            for way in ways:
                with affinity(way.core):
                    say(f"{way.name}: {sizes.wear:,} x {reset}")
                    way.wear.append(
                        worn(way.server, way.templates[small], small, reset, sizes.wear, say)
                    )
        found["ways"] = [way.data(chosen) for way in ways]
    found |= {"seconds": time.time() - started, "load_at_end": machine()["load"]}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1))
    told = found["machine"]
    python = f"Python {told['python']}, psycopg {told['psycopg']}"
    print(
        f"{told['system']}, {told['cores']} cores, {python}; {runs} runs of {sizes.rounds} rounds"
    )
    for data in found["ways"]:
        print("\n".join(["", *table(data)]))


if __name__ == "__main__":
    main()
