"""What probes established, and what suites cost: from what processes wrote down to the rows of the
result."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..pings import percentile

PROBES = (
    "committed rows",
    "rows of a second connection",
    "sequences",
    "rows added to seeds",
    "changed seeds",
    "deleted seeds",
    "DDL",
    "DDL of a second connection",
    "large objects",
    "SET",
    "advisory locks",
    "temporary tables",
    "prepared statements",
    "LISTEN",
)
ALLOWED = ("a second connection sees commits", "notifications are delivered")


def undone(noted: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Judge one probe: whether what the test did was undone before the next; None if that cannot be
    told, and why.

    Arguments: `noted`, as the probes write it: `before`, all was as in a fresh database; `seen`,
    the deed had an effect within its test; `after`, all was as in a fresh database in the next
    test; `error`.
    """
    if "error" in noted or "isolation failed" in noted:
        return None, noted.get("error") or f"its {noted['isolation failed']} failed"
    if not {"before", "seen", "after"} <= set(noted):
        return None, "did not run"
    if not noted["after"]:
        return False, "" if noted[
            "before"
        ] else "was not as in a fresh database before the test either"
    if not noted["before"]:
        return None, "was not as in a fresh database before the test"
    if not noted["seen"]:
        return None, "has no effect within the test"
    return True, ""


def judged(probed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return `undoes`, `allows`, and in `notes` why some of these cannot be told."""
    verdicts = {name: undone(probed.get(name, {})) for name in PROBES}
    notes = {name: why for name, (_, why) in verdicts.items() if why}
    notes |= {
        name: str(probed[name]["error"]) for name in ALLOWED if "error" in probed.get(name, {})
    }
    return {
        "undoes": {name: verdict for name, (verdict, _) in verdicts.items()},
        "allows": {name: probed.get(name, {}).get("allowed") for name in ALLOWED},
        "notes": notes,
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, min and max; None if there is nothing."""
    return (
        {"median": statistics.median(values), "min": min(values), "max": max(values)}
        if values
        else None
    )


def percentiles(runs: Sequence[Mapping[str, Any]], what: str) -> dict[str, float] | None:
    """Return percentiles of all samples of all runs, in milliseconds; None if there are none."""
    samples = [sample * 1000 for run in runs for sample in run[what]]
    if not samples:
        return None
    return {
        "median": statistics.median(samples),
        "p95": percentile(samples, 0.95),
        "p99": percentile(samples, 0.99),
    }


def ratios(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> dict[str, float] | None:
    """Return how many times the set-up and tear-down of the others these take, round by round:
    ratios of medians."""
    return spread([one / other for one, other in _pairs(runs, others, "isolation")])


def surplus(
    runs: Mapping[int, Mapping[str, Any]], floor: Mapping[int, Mapping[str, Any]]
) -> dict[str, float] | None:
    """Return how many milliseconds a whole test takes longer than one of the floor, round by round:
    differences of medians."""
    return spread([(one - other) * 1000 for one, other in _pairs(runs, floor, "whole")])


def _pairs(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], what: str
) -> list[tuple[float, float]]:
    """Return the medians of both for each round in which both ran."""
    numbers = [number for number in sorted(runs) if number in others]
    return [
        (statistics.median(runs[number][what]), statistics.median(others[number][what]))
        for number in numbers
    ]
