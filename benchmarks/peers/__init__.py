"""dbclone beside other packages: what isolating a test costs with each, and what each does not
undo, established by doing it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..pings import machine
from .contenders import ALL, AUTO, Contender
from .environments import Installed, NotInstalled, default_cache
from .processes import Failed, Place, Project
from .verdicts import ALLOWED, PROBES, judged, percentiles, ratios, spread, surplus

__all__ = ["METHOD", "run"]
METHOD = """\
Each contender has a virtual environment of its own with pinned packages, and a pytest project that uses it as its own
documentation says. Schema (11 tables), seeds, statements and server are the same for all. Every second test writes to 2 tables,
the others to 8, and each compares the number of rows in all 8 before and after, except without isolation. A run is a whole pytest
process; contenders take turns, A B C A B C. Per-test cost is the time that pytest gives for set-up and tear-down, the first and
the last test left out, because what is for the whole session happens in them; it is in the suite's time. What isolation costs in
the test itself (triggers, savepoints, a new connection) shows in the whole test: over its floor is the difference from the same
tests over the same library without isolation. Templates of dbclone are found again, as in its users' runs; the others build what
they need in each run. Ratios and differences are of medians, round by round. Nothing is concluded from reading: for each probe
one test does the thing, and the next one looks."""
_TESTS, _RUNS = {True: 30, False: 100}, {True: 2, False: 5}


def run(
    server_url: str,
    quick: bool,
    progress: Callable[[str], None],
    cache: Path | None = None,
    contenders: Sequence[Contender] = ALL,
    installed: Installed | None = None,
) -> dict[str, Any]:
    """Measure and probe all contenders, and return everything as plain data.

    Arguments: `server_url`, of a superuser; `quick`, few tests and runs; `progress`, is told what
    goes on; `cache`, folder for the environments (default: one in the temporary folder);
    `contenders`; `installed`, an environment that has what these need, so that nothing is
    installed.
    """
    started, tests, count = time.monotonic(), _TESTS[quick], _RUNS[quick]
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[int, dict[str, Any]]] = {contender.name: {} for contender in contenders}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(server_url, Path(folder))
        with place.swept():
            projects = _prepared(place, contenders, rows, cache, installed, progress)
            for number in range(count):
                for contender in contenders:
                    row = rows[contender.name]
                    if row["error"]:
                        continue
                    progress(f"peers, run {number + 1} of {count}: {contender.name}")
                    try:
                        runs[contender.name][number] = projects[contender.name].suite(tests)
                    except Failed as error:
                        row["error"] = str(error)
        server = place.settings()
    for name, row in rows.items():
        measured = list(runs[name].values())
        row |= {
            "per_test_ms": percentiles(measured, "isolation"),
            "whole_test_ms": percentiles(measured, "whole"),
            "suite_s": spread([one["wall"] for one in measured]),
            "over_auto": ratios(runs[name], runs.get(AUTO.name, {})),
            "over_floor_ms": surplus(runs[name], runs.get(row["floor"], {})),
            "runs": measured,
        }
    return {
        "method": METHOD,
        "quick": quick,
        "tests": tests,
        "runs": count,
        "rows": list(rows.values()),
        "probes": [*PROBES, *ALLOWED],
        "server": server,
        "machine": machine(),
        "seconds": time.monotonic() - started,
    }


def _prepared(
    place: Place,
    contenders: Sequence[Contender],
    rows: dict[str, dict[str, Any]],
    cache: Path | None,
    installed: Installed | None,
    progress: Callable[[str], None],
) -> dict[str, Project]:
    """Install and probe each contender, fill its row, and return the projects of those that can be
    measured."""
    projects: dict[str, Project] = {}
    for contender in contenders:
        row: dict[str, Any] = {
            name: getattr(contender, name) for name in ("name", "package", "how", "floor")
        }
        row |= {"version": "", "error": None, "packages": {}, **judged({}), "notes": {}}
        rows[contender.name] = row
        try:
            found = installed or contender.environment.install(cache or default_cache(), progress)
            row |= {
                "packages": found.packages,
                "version": found.packages.get(contender.package, ""),
            }
            project = Project(place, contender, found)
            progress(f"peers, probes: {contender.name}")
            row |= judged(project.probe())
            projects[contender.name] = project
        except (NotInstalled, Failed) as error:
            row["error"] = (
                f"not installed: {error}"
                if isinstance(error, NotInstalled)
                else f"its probes failed: {error}"
            )
    return projects
