"""The plots of the report, from what a run of the benchmarks found; each is left out if its part
was not measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from .pairs import summary
from .svg import GREY, Series, Value, bars, lines

Found = Mapping[str, Any]
_RESETS = {
    "rollback": ("dbclone rollback", 0),
    "truncate": ("dbclone truncate", 2),
    "clone": ("dbclone clone", 3),
    "delete all": ("DELETE all", 4),
    "truncate all": ("TRUNCATE all", 1),
    "truncate and seed": ("TRUNCATE, seed again", 1),
    "recreate all": ("create and drop all", 5),
    "fresh": ("fresh CREATE DATABASE", GREY),
}
_COPIES = {"cp -r": GREY, "file_copy": 0, "wal_log": 1, "warm pool": 2, "reflink: file_copy": 3}


def plots(parts: Mapping[str, Found]) -> dict[str, str]:
    """Return SVG documents by file name."""
    found = dict(_suites(parts.get("suites", {})))
    found |= dict(_resets(parts.get("reset", {}).get("points", ())))
    found |= dict(_clones(parts.get("clone", {}).get("rows", ())))
    found |= dict(_peers(parts.get("peers", {}).get("rows", ())))
    return found | dict(_scale(parts.get("scale", {}).get("rows", ())))


def value(figures: Mapping[str, float]) -> Value:
    """Return a summary as a figure with extremes."""
    return Value(figures["median"], figures["min"], figures["max"])


def _suites(found: Found) -> Iterator[tuple[str, str]]:
    cells = [cell for cell in found.get("cells", ()) if cell["runs"]]
    for server in dict.fromkeys(cell["server"] for cell in cells):
        here = [cell for cell in cells if cell["server"] == server]
        size = max(cell["size"] for cell in here)
        workers = sorted({cell["workers"] for cell in here})
        rows = []
        for contender, name in found["contenders"].items():
            walls = {
                c["workers"]: c["runs"]
                for c in here
                if (c["contender"], c["size"]) == (contender, size)
            }
            values = [
                value(summary([run["wall_s"] for run in walls[w]])) if w in walls else None
                for w in workers
            ]
            if walls:
                rows.append((name, values, contender == "none"))
        yield (
            f"suites-{server}.svg",
            bars(
                f"A suite of {size} tests, {server} server: seconds",
                "s",
                [f"{w} workers" for w in workers],
                rows,
            ),
        )


def _resets(points: Any) -> Iterator[tuple[str, str]]:
    across = {
        "tables": "tables, of which 3 are written",
        "written": "tables written",
        "seeds": "seeded rows in one of 30 tables",
    }
    for axis, text in across.items():
        here = [point for point in points if point["axis"] == axis and not point["skipped"]]
        series = []
        for reset, (name, colour) in _RESETS.items():
            own = [
                (p["value"], Value(p["median_ms"], p["median_ms"], p["p95_ms"]))
                for p in here
                if p["reset"] == reset
            ]
            if own:
                series.append(Series(name, sorted(own, key=lambda point: point[0]), colour))
        if series:
            zero = axis != "tables"
            yield (
                f"reset-{axis}.svg",
                lines(
                    "What a reset costs: median, up to the 95th percentile",
                    text,
                    "ms",
                    series,
                    zero=zero,
                ),
            )


def _clones(rows: Any) -> Iterator[tuple[str, str]]:
    first = next((row["server"] for row in rows), "")

    def series(x: str, chosen: Any) -> list[Series]:
        points: dict[str, list[tuple[float, Value]]] = {}
        for row in chosen:
            name = (
                row["contender"]
                if row["server"] == first
                else f"{row['server']}: {row['contender']}"
            )
            points.setdefault(name, []).append((row[x], value(row)))
        return [
            Series(name, sorted(points[name], key=lambda p: p[0]), _COPIES[name])
            for name in _COPIES
            if name in points
        ]

    alone = series("megabytes", [row for row in rows if row["at_once"] == 1])
    if alone:
        yield "clone-size.svg", lines("A copy of a template, by its size", "megabytes", "ms", alone)
    smallest = min((row["wanted_mb"] for row in rows), default=0)
    crowd = [
        row
        for row in rows
        if row["wanted_mb"] == smallest and row["contender"] in ("file_copy", "wal_log")
    ]
    if crowd:
        title = f"Many copies of {smallest} MB at once: time for each"
        yield (
            "clone-crowd.svg",
            lines(title, "copies asked for at once", "ms for each", series("at_once", crowd)),
        )


def _peers(rows: Any) -> Iterator[tuple[str, str]]:
    timed = [row for row in rows if row.get("per_test_ms")]
    if timed:
        ordered = sorted(timed, key=lambda row: row["per_test_ms"]["median"])
        found = [(row["name"], row["per_test_ms"], not row.get("package")) for row in ordered]
        shown = [
            (name, [Value(t["median"], t["median"], t["p95"])], control)
            for name, t, control in found
        ]
        yield (
            "peers.svg",
            bars(
                "What a test costs more, by package: median, up to the 95th percentile",
                "ms",
                ["per test"],
                shown,
            ),
        )


def _scale(rows: Any) -> Iterator[tuple[str, str]]:
    series = []
    for number, reset in enumerate(dict.fromkeys(row["reset"] for row in rows)):
        points = []
        for workers in sorted({row["workers"] for row in rows if row["reset"] == reset}):
            rates = [
                row["tests_per_s"]
                for row in rows
                if (row["reset"], row["workers"]) == (reset, workers)
            ]
            points.append((workers, Value(statistics.median(rates), min(rates), max(rates))))
        series.append(Series(f"dbclone {reset}", points, 0 if number == 0 else 2))
    if series:
        yield (
            "scale.svg",
            lines(
                "Tests a second of all workers together",
                "worker processes on one server",
                "tests/s",
                series,
            ),
        )
