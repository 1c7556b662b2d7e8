"""The goals that the figures are held against: what was measured for each, and whether that is
enough."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .pairs import confidence, ratios

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """A ratio: `values` pair by pair, `where` it was measured; `sure`, the confidence that its
    median keeps the limit, if told."""

    where: str
    values: Sequence[float]
    limit: float
    at_most: bool
    paired: bool = True

    @property
    def ratio(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool:
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit

    @property
    def sure(self) -> float | None:
        return confidence(self.values, self.limit, self.at_most) if self.paired else None


@dataclass(frozen=True)
class Verdict:
    """A goal and everything that was measured for it; `pooled`, the confidence from all pairs
    together."""

    goal: str
    limit: float
    at_most: bool
    measured: Sequence[Measured]

    @property
    def reached(self) -> int:
        return sum(one.reached for one in self.measured)

    @property
    def pooled(self) -> float | None:
        values = [value for one in self.measured if one.paired for value in one.values]
        return confidence(values, self.limit, self.at_most) if values else None

    @property
    def worst(self) -> Measured | None:
        pick = max if self.at_most else min
        return pick(self.measured, key=lambda one: one.ratio) if self.measured else None


def verdicts(parts: Mapping[str, Found]) -> list[Verdict]:
    """Return all goals, in the order in which they were set."""

    def verdict(
        goal: str, limit: float, at_most: bool, found: Iterator[tuple[str, Sequence[float], bool]]
    ) -> Verdict:
        return Verdict(
            goal,
            limit,
            at_most,
            [Measured(where, values, limit, at_most, paired) for where, values, paired in found],
        )

    suites, points = _Suites(parts.get("suites", {})), parts.get("reset", {}).get("points", ())
    return [
        verdict(
            "`rollback`, whole suite, over the floor", 1.05, True, suites.same("rollback", "none")
        ),
        verdict("`auto`, whole suite, over the floor", 1.05, True, suites.same("auto", "none")),
        verdict(
            "`truncate`, whole suite, over the floor", 1.10, True, suites.same("truncate", "none")
        ),
        verdict(
            "reference recipe over `auto`, same workers, durable server",
            5,
            False,
            suites.same("recipe", "auto", ("durable",)),
        ),
        verdict(
            "reference recipe, serial, durable, over the default (embedded, 2 workers)",
            10,
            False,
            suites.default(),
        ),
        verdict(
            "TRUNCATE all over `truncate`, per test, at 30 tables", 30, False, _resets(points, 30)
        ),
        verdict(
            "TRUNCATE all over `truncate`, per test, at 200 tables",
            100,
            False,
            _resets(points, 200),
        ),
        verdict("best peer over `auto`, per test", 3, False, _peers(parts.get("peers", {}))),
        verdict(
            "best peer that undoes all that `auto` does, over `auto`",
            3,
            False,
            _peers(parts.get("peers", {}), equal=True),
        ),
        verdict(
            "clone of an 8 MB template over `cp -r` of it",
            1.6,
            True,
            _clones(parts.get("clone", {})),
        ),
        verdict("the last of many resets over the first", 1.2, True, _wear(parts.get("scale", {}))),
    ]


class _Suites:
    """Whole suites' seconds, by cell and round."""

    def __init__(self, found: Found) -> None:
        self.cells: dict[tuple[str, int, int, str], dict[int, float]] = {
            (c["server"], c["size"], c["workers"], c["contender"]): {
                run["round"]: run["wall_s"] for run in c["runs"]
            }
            for c in found.get("cells", ())
            if c["runs"]
        }

    def same(
        self, one: str, other: str, servers: Sequence[str] = ("embedded", "given")
    ) -> Iterator[tuple[str, Sequence[float], bool]]:
        """Yield one contender over the other, wherever both ran on the same server with the same
        size and workers."""
        for (server, size, workers, contender), runs in self.cells.items():
            others = self.cells.get((server, size, workers, other), {})
            if contender == one and server in servers and (values := ratios(runs, others)):
                yield f"{size} tests, {workers} workers", values, True

    def default(self) -> Iterator[tuple[str, Sequence[float], bool]]:
        for (server, size, workers, contender), runs in self.cells.items():
            others = self.cells.get(("embedded", size, 2, "auto"), {})
            if (server, workers, contender) == ("durable", 0, "recipe") and (
                values := ratios(runs, others)
            ):
                yield f"{size} tests", values, True


def _resets(points: Sequence[Found], tables: int) -> Iterator[tuple[str, Sequence[float], bool]]:
    medians = {
        p["reset"]: p["median_ms"]
        for p in points
        if (p["axis"], p["value"]) == ("tables", tables) and "median_ms" in p
    }
    if {"truncate", "truncate all"} <= set(medians):
        yield (
            f"3 of {tables} tables written",
            [medians["truncate all"] / medians["truncate"]],
            False,
        )


def _peers(found: Found, equal: bool = False) -> Iterator[tuple[str, Sequence[float], bool]]:
    """The peer that costs a test least, over auto: medians of the same rounds. A floor, which has
    none of its own, is no peer.

    Arguments: `equal`, only of those peers that undid whatever auto undid when both were probed.
    """
    rows = {row["name"]: row for row in found.get("rows", ()) if row.get("per_test_ms")}
    others = [
        row
        for row in rows.values()
        if row.get("package") not in ("", "pytest-dbclone") and row.get("floor") != ""
    ]
    if equal and "dbclone auto" in rows:
        undone = [name for name, told in rows["dbclone auto"]["undoes"].items() if told]
        others = [row for row in others if all(row["undoes"].get(name) for name in undone)]
    if "dbclone auto" in rows and others:
        best = min(others, key=lambda row: row["per_test_ms"]["median"])
        own, auto = (
            {n: statistics.median(run["isolation"]) for n, run in enumerate(r["runs"])}
            for r in (best, rows["dbclone auto"])
        )
        yield best["name"], ratios(own, auto), True


def _clones(found: Found) -> Iterator[tuple[str, Sequence[float], bool]]:
    """What dbclone chooses where data are thrown away, over cp, on the first server."""
    rows = [
        r
        for r in found.get("rows", ())
        if (r["wanted_mb"], r["at_once"]) == (8, 1) and r["server"] in ("embedded", "given")
    ]
    runs = {row["contender"]: dict(enumerate(row["runs_ms"])) for row in rows}
    if "file_copy" in runs and "cp -r" in runs:
        yield "file_copy, alone", ratios(runs["file_copy"], runs["cp -r"]), True


def _wear(found: Found) -> Iterator[tuple[str, Sequence[float], bool]]:
    for wear in found.get("wear", ()):
        yield f"{wear['count']:,} x {wear['reset']}", [wear["ratio"]], False
