"""The benchmark of peers: its probes are honest, a contender that leaks has no time, and one that
fails does not stop the rest.

Nothing is installed here: the contenders are those that this process's own packages are enough for.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import METHOD, run
from benchmarks.peers.contenders import ALL, AUTO, FLOOR, FLOORS, OURS, Contender
from benchmarks.peers.environments import Environment, Installed, NotInstalled
from benchmarks.peers.processes import Place, Project
from benchmarks.peers.table import SHORT, lines
from benchmarks.peers.verdicts import ALLOWED, PROBES, judged, percentiles, ratios, surplus, undone
from dbclone.server.server import Server

pytestmark = pytest.mark.slow

HERE = Installed(
    sys.executable, {one.metadata["Name"].lower(): one.version for one in distributions()}
)
OVER_SQLALCHEMY, WITH_SEQUENCES, TRUNCATE, CLONE = OURS[1:]
SESSION = {"SET", "advisory locks", "temporary tables", "prepared statements", "LISTEN"}


class Unavailable(Environment):
    """An environment that cannot be installed."""

    def install(self, cache: Path, progress: Callable[[str], None]) -> Installed:
        raise NotInstalled("no matching distribution")


LEAKY = replace(FLOOR, name="leaky", floor=FLOOR.name, counts=True)
ABSENT = replace(AUTO, name="absent", environment=Unavailable("absent", ("absent==1",)))


def _left(server: Server) -> list[tuple[Any, ...]]:
    return server.fetch(
        "SELECT datname::text FROM pg_database WHERE datname ~ 'peers' UNION ALL"
        " SELECT rolname::text FROM pg_roles WHERE rolname ~ '^peers'"
    )


@pytest.fixture(scope="module")
def measured(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of three contenders returned, as it is after a trip through JSON; what was
    `said`, and what is `left`."""
    said: list[str] = []
    found = run(server.dsn.url, True, said.append, contenders=(FLOOR, LEAKY, AUTO), installed=HERE)
    returned: dict[str, Any] = json.loads(json.dumps(found))
    return returned | {"said": said, "left": _left(server)}


def _probed(server: Server, folder: Path, contender: Contender) -> dict[str, Any]:
    place = Place(server.dsn.url, folder)
    with place.swept():
        return judged(Project(place, contender, HERE).probe())


def _row(measured: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in measured["rows"] if row["name"] == name]
    assert isinstance(row, dict)
    return row


def test_without_isolation_every_probe_finds_what_was_left(measured: dict[str, Any]) -> None:
    row = _row(measured, FLOOR.name)
    assert row["undoes"] == dict.fromkeys(PROBES, False)
    assert row["allows"] == dict.fromkeys(ALLOWED, True)
    assert row["notes"] == {}


def test_auto_undoes_all_that_it_promises(measured: dict[str, Any]) -> None:
    """Sequences are for the setting reset_sequences, a LISTEN waits for a commit, and prepared
    statements nobody promised."""
    row = _row(measured, AUTO.name)
    undoes = {
        name: verdict for name, verdict in row["undoes"].items() if name != "prepared statements"
    }
    assert undoes == dict.fromkeys(undoes, True) | {"sequences": False, "LISTEN": None}
    assert row["notes"] == {"LISTEN": "has no effect within the test"}


def test_auto_undoes_the_same_over_sqlalchemy(
    measured: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    assert (
        _probed(server, tmp_path, OVER_SQLALCHEMY)["undoes"] == _row(measured, AUTO.name)["undoes"]
    )


def test_auto_puts_sequences_back_where_that_is_asked_for(server: Server, tmp_path: Path) -> None:
    assert _probed(server, tmp_path, WITH_SEQUENCES)["undoes"]["sequences"] is True


def test_truncate_undoes_all_but_the_state_of_a_session_that_the_application_keeps(
    server: Server, tmp_path: Path
) -> None:
    found = _probed(server, tmp_path, TRUNCATE)
    assert {name for name, verdict in found["undoes"].items() if verdict is not True} <= SESSION
    assert found["allows"] == dict.fromkeys(ALLOWED, True)


def test_clone_undoes_everything(server: Server, tmp_path: Path) -> None:
    found = _probed(server, tmp_path, CLONE)
    assert (found["undoes"], found["notes"]) == (dict.fromkeys(PROBES, True), {})
    assert found["allows"] == dict.fromkeys(ALLOWED, True)


def test_costs_are_those_of_all_runs(measured: dict[str, Any]) -> None:
    for name in (FLOOR.name, AUTO.name):
        row = _row(measured, name)
        assert row["error"] is None
        assert len(row["runs"]) == measured["runs"] == 2
        for one in row["runs"]:
            assert len(one["isolation"]) == len(one["whole"]) == measured["tests"] - 2
            assert all(
                0 < cost < whole < one["wall"]
                for cost, whole in zip(one["isolation"], one["whole"], strict=True)
            )
        walls = [one["wall"] for one in row["runs"]]
        assert row["suite_s"] == {"median": sum(walls) / 2, "min": min(walls), "max": max(walls)}
        assert (
            0
            < row["per_test_ms"]["median"]
            <= row["per_test_ms"]["p95"]
            <= row["per_test_ms"]["p99"]
        )
    assert _row(measured, AUTO.name)["over_auto"] == {"median": 1, "min": 1, "max": 1}
    assert _row(measured, AUTO.name)["over_floor_ms"].keys() == {"median", "min", "max"}
    assert _row(measured, AUTO.name)["version"] == HERE.packages["pytest-dbclone"]


def test_a_contender_that_leaks_has_no_time(measured: dict[str, Any]) -> None:
    row = _row(measured, "leaky")
    assert "tests failed" in row["error"]
    assert (row["per_test_ms"], row["suite_s"], row["runs"]) == (None, None, [])


def test_contenders_take_turns(measured: dict[str, Any]) -> None:
    turns = [
        found[1]
        for said in measured["said"]
        if (found := re.fullmatch(r"peers, run \d of 2: (.*)", said))
    ]
    assert turns == [FLOOR.name, "leaky", AUTO.name, FLOOR.name, AUTO.name]


def test_nothing_is_left_on_the_server(measured: dict[str, Any]) -> None:
    assert measured["left"] == []


def test_a_peer_that_cannot_be_installed_is_reported(server: Server) -> None:
    (row,) = run(server.dsn.url, True, lambda text: None, contenders=(ABSENT,))["rows"]
    assert row["error"] == "not installed: no matching distribution"
    assert row["undoes"] == dict.fromkeys(PROBES, None)
    assert row["suite_s"] is None


def test_what_contenders_leave_is_swept_away(server: Server, tmp_path: Path) -> None:
    place = Place(server.dsn.url, tmp_path)
    with place.swept():
        for statement in (
            "CREATE DATABASE {}_a IS_TEMPLATE true",
            "CREATE ROLE {}_b",
            "CREATE DATABASE x{}_c",
        ):
            server.connection.execute(statement.format(place.token).encode())
        assert len(_left(server)) == 3
    assert _left(server) == []


@pytest.mark.parametrize(
    ("noted", "verdict"),
    [
        ({"before": True, "seen": True, "after": True}, (True, "")),
        ({"before": True, "seen": True, "after": False}, (False, "")),
        ({"before": True, "seen": False, "after": True}, (None, "has no effect within the test")),
        (
            {"before": False, "seen": True, "after": True},
            (None, "was not as in a fresh database before the test"),
        ),
        (
            {"before": False, "seen": True, "after": False},
            (False, "was not as in a fresh database before the test either"),
        ),
        ({"before": True, "error": "Broken: it"}, (None, "Broken: it")),
        (
            {"before": True, "seen": True, "after": True, "isolation failed": "teardown"},
            (None, "its teardown failed"),
        ),
        ({"before": True, "seen": True}, (None, "did not run")),
        ({}, (None, "did not run")),
    ],
)
def test_nothing_counts_as_undone_that_was_not_done_or_not_looked_at(
    noted: dict[str, Any], verdict: tuple[Any, str]
) -> None:
    assert undone(noted) == verdict


def test_percentiles_are_in_milliseconds_and_ratios_pair_by_pair() -> None:
    runs = [{"isolation": [number / 1000 for number in range(1, 101)]}]
    assert percentiles(runs, "isolation") == pytest.approx({"median": 50.5, "p95": 95, "p99": 99})
    assert percentiles([], "isolation") is None
    one, other = (
        {0: {"isolation": [2.0]}, 1: {"isolation": [9.0]}, 2: {"isolation": [1.0]}},
        {0: {"isolation": [1.0]}, 1: {"isolation": [3.0]}},
    )
    assert ratios(one, other) == {"median": 2.5, "min": 2.0, "max": 3.0}
    one, other = (
        {1: {"whole": [0.002, 0.003, 0.007]}, 4: {"whole": [0.001]}},
        {0: {"whole": [1.0]}, 1: {"whole": [0.001]}},
    )
    assert surplus(one, other) == pytest.approx({"median": 2.0, "min": 2.0, "max": 2.0})
    assert surplus(one, {}) is None


def _recorded() -> dict[str, Any]:
    good: dict[str, Any] = {
        "name": "dbclone auto",
        "error": None,
        "per_test_ms": {"median": 0.51, "p95": 0.62, "p99": 1.24},
        "whole_test_ms": {"median": 2.5, "p95": 3.0, "p99": 4.0},
        "suite_s": {"median": 0.91, "min": 0.85, "max": 1.12},
        "over_auto": {"median": 1.0, "min": 1.0, "max": 1.0},
        "over_floor_ms": {"median": 0.75, "min": 0.71, "max": 0.99},
        "undoes": dict.fromkeys(PROBES, True) | {"sequences": False, "LISTEN": None},
        "allows": dict.fromkeys(ALLOWED, False),
        "notes": {"LISTEN": "has no effect within the test"},
    }
    bad = copy.deepcopy(good) | {
        "name": "other",
        "error": "not installed: gone",
        "notes": {},
        **judged({}),
        "over_auto": None,
        "over_floor_ms": None,
    }
    bad |= {"per_test_ms": None, "whole_test_ms": None, "suite_s": None, "notes": {}}
    return {
        "server": {"server_version": "18.6", "fsync": "off"},
        "runs": 5,
        "tests": 100,
        "rows": [good, bad],
    }


def test_the_table_shows_each_figure_and_each_verdict() -> None:
    found = "\n".join(lines(_recorded()))
    assert "PostgreSQL 18.6, fsync off; 5 runs of 100 tests, by turns" in found
    figures = "0.51 0.62 1.24 1.0 (1.0 .. 1.0) 2.50 0.75 (0.71 .. 0.99) 0.91 (0.85 .. 1.12)"
    assert f"dbclone auto {figures}" in [" ".join(line.split()) for line in found.splitlines()]
    assert re.search(r"^other +not measured$", found, re.M)
    (heading,) = [line for line in found.splitlines() if line.split()[:2] == ["rows", "rows"]]
    (verdicts,) = [line for line in found.splitlines() if re.match(r"dbclone auto +yes", line)]
    for name, word in {
        "committed rows": "yes",
        "sequences": "NO",
        "LISTEN": "?",
        ALLOWED[0]: "NO",
    }.items():
        end = re.search(rf"  {re.escape(SHORT[name])}(?= |$)", heading)
        assert end is not None
        assert verdicts[: end.end()].endswith(f" {word}")
    assert "dbclone auto, LISTEN: has no effect within the test" in found
    assert found.endswith("other: not installed: gone")


def test_every_contender_is_pinned_and_says_how_it_isolates() -> None:
    assert len({contender.name for contender in ALL}) == len(ALL)
    for contender in ALL:
        assert all("==" in requirement for requirement in contender.environment.requirements)
        assert len(contender.how) > 10
        assert (contender.floor == "") == (contender in FLOORS) == (not contender.counts)
        assert contender.package == "pytest-dbclone" or any(
            requirement.startswith(contender.package)
            for requirement in contender.environment.requirements
        )
    assert "A B C A B C" in METHOD
