"""What undoing one test costs, in milliseconds and in pings of the same run.

Goals: nothing written, 30 tables: 2 pings. 3 of 30 tables written: 5 pings, and 30 times cheaper than TRUNCATE of all. 3 of 200:
2.5 ms, and 100 times cheaper. 3 of 1,000: 10 ms. One changed row among 1,000 seeded: 10 pings; among 1,000,000: cheaper than a fresh clone.
Rollback with its audit: 4 pings. A fresh clone from the warm pool: 1 ms.
Control: a ping, which is `SELECT 1`, prepared, over a connection like the tests'; TRUNCATE and DELETE of all tables over a kept
connection, and create and drop.
Factors (do not change): the cost of a reset is the time to enter and to leave `clone.isolated`; what the test writes, over a kept
connection of its own, is between them and not counted. Contenders take turns: A B C A B C.
Parameters: --runs, --many (resets of the long run), --binaries or --url (the server), --pin, --json FILE.

Where a client and a server wake each other across cores, each message costs tens of microseconds more or less by the scheduler's
mood, and a ping is too short to be treated the same. `--pin` keeps both on one core, which is steadier and shows the work itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from dbclone import adapters
from dbclone.clone import Clone
from dbclone.server import Server
from dbclone.settings import load
from dbclone.template import Template

GOALS = {
    "truncate, nothing written, 30 tables": ("pings", 2.0),
    "truncate, 3 of 30 written": ("pings", 5.0),
    "truncate, 3 of 200 written": ("ms", 2.5),
    "truncate, 3 of 1000 written": ("ms", 10.0),
    "truncate, 1 row of 1,000 seeded changed": ("pings", 10.0),
    "rollback, nothing written, with audit": ("pings", 4.0),
    "rollback, 3 tables written, with audit": ("pings", 4.0),
    "clone from the warm pool": ("ms", 1.0),
}


def schema(tables: int, seeds: int = 0) -> str:
    """Return tables as projects have them: serial key, foreign key in two of three, text, an index."""
    parts = []
    for number in range(tables):
        reference = f"REFERENCES t{number - 1}" if number % 3 else ""
        parts.append(f"CREATE TABLE t{number} (id serial PRIMARY KEY, up int {reference}, note text);")
        parts.append(f"CREATE INDEX ON t{number} (note);")
    if seeds:
        parts.append("CREATE TABLE seeded (id int PRIMARY KEY, note text);")
        parts.append(f"INSERT INTO seeded SELECT g, 'seed ' || g FROM generate_series(1, {int(seeds)}) AS g;")
    return "\n".join(parts)


class Bench:
    """One clone of one schema, and the acts that are measured in it. `times` is in seconds, by name of the act."""

    def __init__(self, clone: Clone, tables: int) -> None:
        self.clone, self.tables = clone, tables
        self.writer = clone.connect(autocommit=True)
        self.times: dict[str, list[float]] = {}

    def timed(self, name: str, act: Callable[[], object]) -> None:
        """Run an act and note its time."""
        started = time.perf_counter()
        act()
        self.times.setdefault(name, []).append(time.perf_counter() - started)

    def ping(self) -> None:
        self.timed("ping", lambda: self.writer.execute("SELECT 1", prepare=True).fetchone())

    def write(self, execute: Callable[..., Any] | None = None) -> None:
        """Write to three tables, as a test would."""
        for number in (3, 4, 5):
            name = sql.Identifier(f"t{number % self.tables}")
            (execute or self.writer.execute)(sql.SQL("INSERT INTO {} (note) VALUES ('x')").format(name))

    def reset(self, name: str, reset: str, write: Callable[[Any], object]) -> None:
        """Measure entering and leaving one test."""
        started = time.perf_counter()
        with self.clone.isolated(reset, name) as isolation:
            entered = time.perf_counter()
            write(isolation)
            left = time.perf_counter()
        self.times.setdefault(name, []).append(time.perf_counter() - left + entered - started)

    def everything(self, template: str) -> None:
        """Run one statement for all tables."""
        self.writer.execute("; ".join(template.format(f"t{number}") for number in reversed(range(self.tables))).encode())

    def truncate_all(self) -> None:
        names = ", ".join(f"t{number}" for number in range(self.tables))
        self.writer.execute(f"TRUNCATE {names} RESTART IDENTITY".encode())


@contextlib.contextmanager
def bench(server: Server, tables: int, seeds: int = 0) -> Iterator[Bench]:
    """Yield a Bench on a fresh clone; its template is dropped afterwards."""
    with tempfile.TemporaryDirectory() as place:
        Path(place, "schema.sql").write_text(schema(tables, seeds))
        own = load(Path(place), {"schema": "schema.sql", "name": f"bench{tables}x{seeds}"}, {})
        before, server.settings = server.settings, own
        parts, handle = adapters.load(own)
        with Template.ensure(server, parts, handle).clone("bench") as clone:
            found = Bench(clone, tables)
            yield found
            found.writer.close()
        server.settings = before


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def few_tables(server: Server, runs: int, tables: int) -> dict[str, list[float]]:
    """Measure resets of one size beside what is done without them."""
    progress(f"{tables} tables")
    with bench(server, tables) as b:
        for _ in range(runs):
            b.ping()
            b.reset(f"truncate, nothing written, {tables} tables", "truncate", lambda isolation: None)
            b.ping()
        for number in range(runs):
            b.ping()
            b.reset(f"truncate, 3 of {tables} written", "truncate", lambda isolation: b.write())
            b.ping()
            if tables == 30:
                b.reset("rollback, nothing written, with audit", "rollback", lambda isolation: None)
                b.reset("rollback, 3 tables written, with audit", "rollback", lambda isolation: b.write(isolation.execute))
            if number % 10 == 0:
                with b.clone.isolated("truncate"):
                    b.write()
                    b.timed(f"TRUNCATE all {tables}", b.truncate_all)
                    b.write()
                    b.timed(f"DELETE all {tables}", lambda: b.everything("DELETE FROM {}"))
        return b.times


def seeded(server: Server, runs: int, rows: int) -> dict[str, list[float]]:
    """Measure one changed row among many."""
    progress(f"{rows} seeded rows")
    with bench(server, 30, rows) as b:
        for _ in range(runs):
            b.ping()
            b.reset(f"truncate, 1 row of {rows:,} seeded changed", "truncate", lambda isolation: _change(b))
        for _ in range(max(3, runs // 20)):
            b.timed(f"a fresh clone, {rows:,} rows", lambda: b.clone.replace("the benchmark"))
        return b.times


def _change(b: Bench) -> None:
    statement = b"UPDATE seeded SET note = 'changed' WHERE id = 7"
    try:
        b.writer.execute(statement)
    except psycopg.OperationalError:  # the clone was replaced
        b.writer = b.clone.connect(autocommit=True)
        b.writer.execute(statement)


def clones(server: Server, runs: int) -> dict[str, list[float]]:
    """Measure the hand-over of a warm clone, and dropping and building again."""
    progress("clones")
    with bench(server, 30) as b:
        for number in range(max(5, runs // 4)):
            b.reset("clone from the warm pool", "clone", lambda isolation: time.sleep(0.1))
            if number % 5 == 0:
                b.reset("drop: dropping and building again", "drop", lambda isolation: None)
        return {name: values[1:] for name, values in b.times.items()}  # the first starts the pool


def many(server: Server, count: int) -> dict[str, list[float]]:
    """Measure whether the last reset costs what the first did, and whether plans stay the same."""
    progress(f"{count} resets")
    with bench(server, 30) as b:
        for _ in range(count):
            b.reset("all", "truncate", lambda isolation: b.write())
        window = min(200, count // 3)
        times = b.times["all"]
        return {f"first {window} of {count:,}": times[20 : 20 + window], f"last {window} of {count:,}": times[-window:]}


def report(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a row for each act: median and 95th percentile in ms, and in pings."""
    ping = statistics.median(times.get("ping", [float("nan")]))
    rows = []
    for name, values in times.items():
        ordered = sorted(values)
        median, late = statistics.median(ordered), ordered[int(len(ordered) * 0.95)]
        row = {"name": name, "runs": len(values), "median_ms": median * 1e3, "p95_ms": late * 1e3, "pings": median / ping}
        if name in GOALS:
            unit, goal = GOALS[name]
            row |= {"goal": f"{goal:g} {unit}", "met": (median / ping if unit == "pings" else median * 1e3) <= goal}
        rows.append(row)
    return rows


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tables", type=int, nargs="+", default=[30, 200, 1000])
    parser.add_argument("--binaries", default="")
    parser.add_argument("--url", default="")
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    if given.pin:
        os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as place:
        options = {"cache_dir": str(Path(place, "cache")), "binaries": given.binaries, "url": given.url}
        with Server.open(load(Path(place), {k: v for k, v in options.items() if v}, {})) as server:
            about = {
                "server": server.version,
                "durable": server.facts.durable,
                "superuser": server.facts.superuser,
                "python": platform.python_version(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "pinned": given.pin,
            }
            measured = [few_tables(server, given.runs, count) for count in given.tables]
            measured += [seeded(server, given.runs if count < 10_000 else 10, count) for count in (1000, given.rows)]
            measured += [clones(server, given.runs), many(server, given.many)]
            results = [row for times in measured for row in report(times)]
            if server.embedded is not None:
                server.embedded.cluster.stop()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{'':44} {'runs':>6} {'median ms':>10} {'95 % ms':>9} {'pings':>7}  goal")
    for row in results:
        pings = f"{row['pings']:7.1f}" if row["pings"] == row["pings"] else " " * 7
        goal = f"{row['goal']} {'met' if row['met'] else 'MISSED'}" if "goal" in row else ""
        print(f"{row['name']:44} {row['runs']:6} {row['median_ms']:10.3f} {row['p95_ms']:9.3f} {pings}  {goal}")
    if given.json:
        Path(given.json).write_text(json.dumps({"about": about, "results": results}, indent=2))


if __name__ == "__main__":
    main()
