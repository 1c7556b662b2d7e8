"""The result as text: what isolation costs with each contender, and what it does not undo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .verdicts import ALLOWED, PROBES

SHORT = {
    "committed rows": "rows",
    "rows of a second connection": "rows 2nd",
    "sequences": "seq",
    "rows added to seeds": "+seed",
    "changed seeds": "~seed",
    "deleted seeds": "-seed",
    "DDL": "DDL",
    "DDL of a second connection": "DDL 2nd",
    "large objects": "lo",
    "SET": "SET",
    "advisory locks": "lock",
    "temporary tables": "temp",
    "prepared statements": "prep",
    "LISTEN": "LISTEN",
    "a second connection sees commits": "seen",
    "notifications are delivered": "notify",
}
_SPREAD = "median (min .. max)"
_WORDS = {True: "yes", False: "NO", None: "?"}


def lines(data: Mapping[str, Any]) -> list[str]:
    """Return the lines that show what `benchmarks.peers.run` returned."""
    rows, server = data["rows"], data["server"]
    where = f"PostgreSQL {server['server_version']}, fsync {server['fsync']}"
    return [
        f"{where}; {data['runs']} runs of {data['tests']} tests, by turns; median (min .."
        f" max) are of runs",
        "",
        *_costs(rows),
        "",
        *_undone(rows),
        *(f"{row['name']}: {row['error']}" for row in rows if row["error"]),
    ]


def _costs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    wide = _wide(rows)
    found = [
        f"{'':{wide}}{'set-up + tear-down, ms':>27}{'over auto, times':>22}"
        f"{'whole test':>12}{'over its floor, ms':>24}{'suite, s':>22}",
        f"{'':{wide}}{'median':>9}{'p95':>9}{'p99':>9}{_SPREAD:>22}{'median, ms':>12}{_SPREAD:>24}{_SPREAD:>22}",
    ]
    for row in rows:
        cost = row["per_test_ms"]
        if cost is None:
            found.append(f"{row['name']:{wide}}  not measured")
            continue
        found.append(
            f"{row['name']:{wide}}{cost['median']:9.2f}{cost['p95']:9.2f}{cost['p99']:9.2f}{_spread(row['over_auto'], 1):>22}"
            f"{row['whole_test_ms']['median']:12.2f}{_spread(row['over_floor_ms'], 2):>24}{_spread(row['suite_s'], 2):>22}"
        )
    return found


def _undone(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    wide, names = _wide(rows), (*PROBES, *ALLOWED)
    found = [
        f"{'':{wide}}{'undone before the next test':^{_width(PROBES)}}{'possible':^{_width(ALLOWED)}}".rstrip(),
        f"{'':{wide}}" + "".join(f"{SHORT[name]:>{_width([name])}}" for name in names),
    ]
    unknown = []
    for row in rows:
        told = {**row["undoes"], **row["allows"]}
        cells = "".join(f"{_WORDS[told[name]]:>{_width([name])}}" for name in names)
        found.append(f"{row['name']:{wide}}{cells}")
        unknown += [
            f"        {row['name']}, {SHORT[name]}: {why}"
            for name, why in row["notes"].items()
            if told[name] is None
        ]
    found += ["", *(f"    {SHORT[name]:8} {name}" for name in names if SHORT[name] != name)]
    return [*found, *(["    ?        cannot be told:", *unknown] if unknown else [])]


def _spread(figures: Mapping[str, float] | None, digits: int) -> str:
    return (
        "{median:.{0}f} ({min:.{0}f} .. {max:.{0}f})".format(digits, **figures) if figures else ""
    )


def _wide(rows: Sequence[Mapping[str, Any]]) -> int:
    return max(len(row["name"]) for row in rows) + 1


def _width(names: Sequence[str]) -> int:
    return sum(len(SHORT[name]) + 3 for name in names)
