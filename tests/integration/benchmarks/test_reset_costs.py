"""The benchmark of resets measures what it says: every case writes, and is put back. No figure is
judged here."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.cases import FRESH, Case
from benchmarks.goals import Cheaper, Milliseconds, Pings, judged
from benchmarks.pings import Figures, Run, percentile
from benchmarks.reset_costs import QUICK, cases
from benchmarks.shop import Broken, Shop, inserts, reads, updates
from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template

from ...oracle import fingerprint

ROOT = Path(__file__).parents[3]
SHOP = Shop(6, 10)


def _databases(server: Server) -> set[str]:
    return {name for (name,) in server.fetch("SELECT datname::text FROM pg_database")}


@pytest.fixture(scope="module")
def measured(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run on the test's own server wrote, and `printed`, and the databases `left` on
    the server."""
    path, before = tmp_path_factory.mktemp("benchmark") / "found.json", _databases(server)
    command = [
        sys.executable,
        "-m",
        "benchmarks.reset_costs",
        "--quick",
        "--server",
        server.dsn.url,
        "--json",
        str(path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "run 2 of 2" in done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return {**found, "printed": done.stdout, "left": _databases(server) - before}


def test_every_case_was_measured_in_every_run(measured: dict[str, Any]) -> None:
    (way,) = measured["ways"]
    assert [case["name"] for case in way["cases"]] == [case.name for case in cases(QUICK)]
    for case, wanted in zip(way["cases"], cases(QUICK), strict=True):
        assert not case["skipped"]
        assert [(len(run["samples"]), len(run["pings"])) for run in case["runs"]] == [
            (wanted.burst, wanted.burst)
        ] * 2
        samples = [sample * 1000 for run in case["runs"] for sample in run["samples"]]
        assert min(samples) > 0
        assert case["median_ms"] == pytest.approx(statistics.median(samples))
        assert case["p95_ms"] in [pytest.approx(sample) for sample in samples]
        assert case["lowest_median_ms"] <= case["median_ms"] <= case["highest_median_ms"]
        assert case["median_pings"] == pytest.approx(case["median_ms"] / case["ping_ms"])
        assert [goal["goal"] for goal in case["goals"]] == [goal.text for goal in wanted.goals]


def test_every_case_wrote_and_was_put_back(measured: dict[str, Any]) -> None:
    """Rows that differed before and after the first test wrote, and before and after the last."""
    for case in measured["ways"][0]["cases"]:
        written = case["written"]
        assert [run["looks"] for run in case["runs"]] == [
            [] if case["reset"] == FRESH else [0, written, 0, written]
        ] * 2
    assert {case["written"] for case in measured["ways"][0]["cases"]} == {0, 1, 3}
    for wear in measured["ways"][0]["wear"]:
        assert wear["looks"] == [0, 3, 0, 3]
        assert wear["count"] == QUICK.wear
        assert all("Join" in wear[f"probe_{when}"]["plan"] for when in ("before", "fresh", "after"))
        assert wear["same_plan"] == (wear["probe_before"]["plan"] == wear["probe_after"]["plan"])


def test_where_it_was_measured_is_told(measured: dict[str, Any], server: Server) -> None:
    assert measured["machine"]["cores"] >= 1
    assert measured["ways"][0]["server"]["version"] == server.version
    assert measured["ways"][0]["server"]["fsync"] == "off"
    assert measured["ways"][0]["pinned"] is False


def test_the_table_shows_each_case_and_each_goal(measured: dict[str, Any]) -> None:
    for case in measured["ways"][0]["cases"]:
        assert f"\n{case['name']} " in measured["printed"]
        for goal in case["goals"]:
            assert (
                f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['reached']}\n"
                in measured["printed"]
            )


def test_nothing_of_it_is_left_on_the_server(measured: dict[str, Any]) -> None:
    assert measured["left"] == set()


@contextmanager
def _cloned(server: Server, settings: Settings) -> Iterator[tuple[Template, Clone]]:
    """Yield the template of SHOP, and a clone of it that no case uses."""
    server.settings, before = replace(settings, name="benchmarked"), server.settings
    try:
        template = Template.ensure(server, SHOP)
        with template.clone("truth") as clone:
            yield template, clone
    finally:
        server.settings = before


@pytest.mark.parametrize("reset", ["truncate", "rollback", "clone"])
@pytest.mark.parametrize("write", [reads, inserts, updates], ids=lambda write: write.__name__)
def test_a_measured_test_leaves_the_template(
    server: Server, settings: Settings, reset: str, write: Any
) -> None:
    """In the eyes of the oracle, which knows nothing of the benchmark's own looks."""
    case = Case("case", SHOP, reset, write, alone=reset == "clone")
    with _cloned(server, settings) as (template, truth), case.opened(server, template) as contender:
        assert contender.clone is not None
        for run in (None, Run()):
            assert contender.act(run) > 0
        sequences = reset != "rollback"
        assert fingerprint(contender.clone.url, sequences) == fingerprint(truth.url, sequences)


@pytest.mark.parametrize("write", [inserts, updates], ids=lambda write: write.__name__)
def test_a_reset_that_does_nothing_is_noticed(
    server: Server, settings: Settings, write: Any
) -> None:
    """By the test after it, even where nobody looks at rows."""
    case = Case("case", SHOP, "none", write)
    with _cloned(server, settings) as (template, _), case.opened(server, template) as contender:
        contender.act(None)
        with pytest.raises((Broken, psycopg.errors.UniqueViolation)):
            contender.act(None)


@pytest.mark.parametrize("reset", ["truncate", "rollback"])
def test_a_test_that_does_not_write_is_noticed(
    server: Server, settings: Settings, reset: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr("benchmarks.cases._WRITTEN", {reads: 3})
    case = Case("case", SHOP, reset, reads)
    with _cloned(server, settings) as (template, _), case.opened(server, template) as contender:
        with pytest.raises(Broken, match="0 rows differed before the test wrote, and 0 after"):
            contender.act(Run())


def test_a_reset_that_dbclone_does_not_have_is_skipped() -> None:
    assert "'undo'" in Case("case", SHOP, "undo").refused
    assert not any(case.refused for case in cases(QUICK))


def test_goals_are_met_or_missed_by_what_was_measured() -> None:
    """Ten samples of 1 to 10 ms and a ping of 1 ms: a median of 5.5 ms and pings."""
    figures = Figures.of(
        [
            Run([n / 1000 for n in range(1, 6)], [0.001] * 5),
            Run([n / 1000 for n in range(6, 11)], [0.001] * 5),
        ]
    )
    assert (figures.median, figures.p95, figures.lowest, figures.highest) == pytest.approx(
        (5.5, 10, 3, 8)
    )
    others = {"dear": replace(figures, median=11.0)}
    goals = (
        Pings(5.6),
        Pings(5.4),
        Milliseconds(5.6),
        Milliseconds(5.4),
        Cheaper(1.9, "dear"),
        Cheaper(2.1, "dear"),
    )
    assert [goal["met"] for goal in judged(goals, figures, others)] == [True, False] * 3
    assert not Cheaper(1, "dear").reached(figures, {"dear": figures})[1]
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
