"""The result as text: what isolation costs with each contender, and what it does not undo."""

from __future__ import annotations

from collections.abc import Mapping
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
_WORDS = {True: "yes", False: "NO", None: "?"}


def lines(data: Mapping[str, Any]) -> list[str]:
    """Return the lines that show what `benchmarks.peers.run` returned."""
    rows = data["rows"]
    wide = max(len(row["name"]) for row in rows) + 2
    found = [
        f"PostgreSQL {data['server']['server_version']}, fsync {data['server']['fsync']};"
        f" {data['runs']} runs of {data['tests']} tests, by turns",
        "",
        f"{'':{wide}}{'set-up + tear-down, ms':^30}{'whole test':>12}{'suite, s':>22}{'over auto':>24}",
        f"{'':{wide}}{'median':>10}{'p95':>10}{'p99':>10}{'median, ms':>12}{'median (min .. max)':>22}{'median (min .. max)':>24}",
    ]
    for row in rows:
        if row["per_test_ms"] is None:
            found.append(f"{row['name']:{wide}}{'not measured':>12}")
            continue
        cost, suite, over = row["per_test_ms"], row["suite_s"], row["over_auto"]
        times = f"{over['median']:.1f} ({over['min']:.1f} .. {over['max']:.1f})" if over else ""
        seconds = f"{suite['median']:.2f} ({suite['min']:.2f} .. {suite['max']:.2f})"
        found.append(
            f"{row['name']:{wide}}{cost['median']:10.2f}{cost['p95']:10.2f}{cost['p99']:10.2f}"
            f"{row['whole_test_ms']['median']:12.2f}{seconds:>22}{times:>24}"
        )
    names = (*PROBES, *ALLOWED)
    found += ["", f"{'':{wide}}{'undone before the next test':^{_width(PROBES)}}  {'possible':^{_width(ALLOWED)}}".rstrip()]
    found.append(f"{'':{wide}}" + "".join(f"{SHORT[name]:>{len(SHORT[name]) + 3}}" for name in names))
    for row in rows:
        told = {**row["undoes"], **row["allows"]}
        cells = "".join(f"{_WORDS[told[name]] if name in told else '':>{len(SHORT[name]) + 3}}" for name in names)
        found.append(f"{row['name']:{wide}}{cells}".rstrip())
    found += ["", *(f"    {SHORT[name]:8} {name}" for name in names), "    ?        cannot be told:"]
    for row in rows:
        found += [
            f"        {row['name']}, {SHORT[name]}: {why}"
            for name, why in row["notes"].items()
            if {**row["undoes"], **row["allows"]}[name] is None
        ]
    found += [f"{row['name']}: {row['error']}" for row in rows if row["error"]]
    return found


def _width(names: tuple[str, ...]) -> int:
    return sum(len(SHORT[name]) + 3 for name in names)
