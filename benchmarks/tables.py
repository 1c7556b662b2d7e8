"""The tables of the report as Markdown, each from the figures of one part."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .pairs import ratios, summary
from .svg import shown
from .verdicts import Verdict

Found = Mapping[str, Any]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first column is text, the others figures."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def spread(figures: Mapping[str, float]) -> str:
    """Return a median with its extremes, if there was more than one run."""
    if figures["n"] < 2:
        return shown(figures["median"])
    return f"{shown(figures['median'])} ({shown(figures['min'])}–{shown(figures['max'])})"


def goals(found: Sequence[Verdict]) -> list[str]:
    """Return the table of goals: what was wanted, the worst that was measured, in how many cases it
    was reached, how surely."""
    rows = []
    for one in found:
        limit = f"{'≤' if one.at_most else '≥'} {one.limit:g}"
        if one.worst is None:
            rows.append([one.goal, limit, "not measured", "", "", ""])
            continue
        medians = statistics.median(measured.ratio for measured in one.measured)
        word = "**reached**" if one.reached == len(one.measured) else "**missed**"
        rows.append(
            [
                one.goal,
                limit,
                f"{medians:.2f}",
                f"{one.worst.ratio:.2f} ({one.worst.where})",
                f"{word} in {one.reached} of {len(one.measured)}"
                if one.reached not in (0, len(one.measured))
                else word,
                f"{one.pooled:.0%}" if one.pooled is not None else "",
            ]
        )
    return table(
        ["figure", "goal", "median of all cases", "worst case", "verdict", "confidence"], rows
    )


def goal_cases(found: Sequence[Verdict]) -> list[str]:
    """Return every case of every goal that has more than one."""
    rows = []
    for one in found:
        for measured in one.measured if len(one.measured) > 1 else ():
            sure = f"{measured.sure:.0%}" if measured.sure is not None else ""
            figures = spread(summary(measured.values))
            rows.append(
                [
                    one.goal,
                    measured.where,
                    figures,
                    str(len(measured.values)),
                    "yes" if measured.reached else "no",
                    sure,
                ]
            )
    return table(["figure", "where", "ratio", "pairs", "reached", "confidence"], rows)


def suites(found: Found) -> Iterator[str]:
    """Yield a table per server and size: whole processes, over the floor, and one test."""
    cells = [cell for cell in found.get("cells", ()) if cell["runs"]]
    for server, size in dict.fromkeys((cell["server"], cell["size"]) for cell in cells):
        here = {
            (c["contender"], c["workers"]): c["runs"]
            for c in cells
            if (c["server"], c["size"]) == (server, size)
        }
        workers = sorted({number for _, number in here})
        yield f"**{size} tests, {server} server**"
        yield ""
        rows = []
        for contender, name in found["contenders"].items():
            if not any((contender, number) in here for number in workers):
                continue
            row = [name]
            for number in workers:
                row += _cell(here.get((contender, number), ()), here.get(("none", number), ()))
            serial = here.get((contender, workers[0]), ())
            rows.append(
                [
                    *row,
                    shown(statistics.median(run["median_ms"] for run in serial)) if serial else "–",
                ]
            )
        heads = [text for number in workers for text in (f"{number} workers, s", "× floor")]
        yield from table(["", *heads, "one test, ms"], rows)


def _cell(runs: Sequence[Found], floor: Sequence[Found]) -> list[str]:
    if not runs:
        return ["–", "–"]
    own, others = ({run["round"]: run["wall_s"] for run in which} for which in (runs, floor))
    over = ratios(own, others)
    return [spread(summary(list(own.values()))), f"{statistics.median(over):.2f}" if over else "–"]


def published(found: Found) -> Iterator[str]:
    """Yield the reference's own figures, as context."""
    if found.get("published"):
        rows = [
            [f"{workers} workers", *(shown(value) for value in values)]
            for workers, values in found["published"].items()
        ]
        yield from table(["seconds, as published", "139 tests", "199 tests", "316 tests"], rows)


def resets(points: Sequence[Found]) -> Iterator[str]:
    """Yield a table per axis."""
    for axis in dict.fromkeys(point["axis"] for point in points):
        here = [point for point in points if point["axis"] == axis]
        values = list(dict.fromkeys(point["value"] for point in here))
        rows = []
        for reset in dict.fromkeys(point["reset"] for point in here):
            own = {point["value"]: point for point in here if point["reset"] == reset}
            rows.append([reset, *(_reset(own.get(number)) for number in values)])
        yield from table(
            [f"{axis}: median / p95 / p99 ms (pings)", *(f"{number:,}" for number in values)], rows
        )


def _reset(point: Found | None) -> str:
    if point is None or point["skipped"]:
        return "–"
    # A 99th percentile of few samples is only their maximum.
    tail = f" / {shown(point['p99_ms'])}" if point["samples"] >= 100 else ""
    return f"{shown(point['median_ms'])} / {shown(point['p95_ms'])}{tail} ({shown(point['median_pings'])})"


def clones(rows: Sequence[Found]) -> Iterator[str]:
    """Yield a table per server: sizes across for one at a time, and one of how many at once."""
    for server in dict.fromkeys(row["server"] for row in rows):
        here = [row for row in rows if row["server"] == server]
        sizes = list(dict.fromkeys((row["wanted_mb"], row["megabytes"]) for row in here))
        lines = []
        for contender, count in dict.fromkeys((row["contender"], row["at_once"]) for row in here):
            own = {
                row["wanted_mb"]: row
                for row in here
                if (row["contender"], row["at_once"]) == (contender, count)
            }
            name = contender if count == 1 else f"{contender}, {count} at once, each"
            lines.append([name, *(spread(own[size]) if size in own else "–" for size, _ in sizes)])
        lines.sort(key=lambda line: line[0].split(",")[0])
        yield from table(
            [f"{server}, ms", *(f"{megabytes:,.0f} MB" for _, megabytes in sizes)], lines
        )


def start_up(rows: Sequence[Found]) -> list[str]:
    """Return the table of start-up times, and what is beyond the control."""
    lines = []
    for row in rows:
        beyond = spread(row["beyond"]) if "beyond" in row and row["beyond"]["n"] else ""
        lines.append([row["name"], spread(row), str(row["n"]), row.get("control", ""), beyond])
    return table(["process", "ms", "runs", "control", "beyond it, ms"], lines)


def peers(rows: Sequence[Found]) -> Iterator[str]:
    """Yield the tables of other packages: what a test costs, and what is undone, as a probe found."""
    lines = []
    for row in rows:
        name = f"{row['name']} {row.get('version') or ''}".strip()
        if not row.get("per_test_ms"):
            lines.append([name, "not measured", "", "", "", ""])
            continue
        suite, over = {"n": 2, **row["suite_s"]}, row.get("over_auto")
        times = [shown(row["per_test_ms"][key]) for key in ("median", "p95", "p99")]
        lines.append([name, *times, spread(suite), spread({"n": 2, **over}) if over else ""])
    yield from table(
        ["", "a test, ms", "p95", "p99", "whole suite, s", "× dbclone auto, a test"], lines
    )
    told = {row["name"]: {**row.get("undoes", {}), **row.get("allows", {})} for row in rows}
    words = {True: "yes", False: "**no**", None: "?"}
    probes = list(dict.fromkeys(name for found in told.values() for name in found))
    lines = [[probe, *(words[found.get(probe)] for found in told.values())] for probe in probes]
    yield from table(["undone, or possible", *told], lines)
    for row in rows:
        if row.get("error"):
            yield f"{row['name']}: {str(row['error']).strip().splitlines()[0]}"
            yield ""


def scale(rows: Sequence[Found]) -> list[str]:
    """Return the table of crews."""
    lines = []
    for reset, workers in dict.fromkeys((row["reset"], row["workers"]) for row in rows):
        own = [row for row in rows if (row["reset"], row["workers"]) == (reset, workers)]
        rates = spread(summary([row["tests_per_s"] for row in own]))
        times = [
            shown(statistics.median(row[key] for row in own))
            for key in ("median_ms", "p95_ms", "p99_ms")
        ]
        lines.append(
            [
                reset,
                str(workers),
                rates,
                *times,
                shown(own[0]["ready_s"]),
                shown(own[0]["clone_median_ms"]),
            ]
        )
    return table(
        [
            "reset",
            "workers",
            "tests/s, all together",
            "a test, ms",
            "p95",
            "p99",
            "all ready, s",
            "a clone, ms",
        ],
        lines,
    )


def wear(rows: Sequence[Found]) -> list[str]:
    """Return the table of what many resets do."""
    lines = []
    for row in rows:
        plan = "the same" if row["same_plan"] else "another"
        lines.append(
            [
                row["name"],
                *(shown(row[key]) for key in ("first_ms", "last_ms", "ratio", "worst_ms")),
                plan,
            ]
        )
    return table(
        [
            "",
            "in a fresh clone, ms",
            "the last ones, ms",
            "ratio",
            "worst, ms",
            "plan of a join afterwards",
        ],
        lines,
    )
