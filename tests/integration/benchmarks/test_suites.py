"""Benchmarks cannot cheat: an isolation that leaks has no time, the floor does the same work, and a
part that fails is told."""

from __future__ import annotations

import importlib
import json
import re
import statistics
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import PARTS, arguments, main
from benchmarks.clones import COPY, POOL, Sized
from benchmarks.places import DURABLE, Place
from benchmarks.scale import Failed, _round, crew
from benchmarks.shop import Broken
from benchmarks.start_up import Projects
from benchmarks.suites import CONTENDERS, SIZES, Cell, Suites, cells, generate
from dbclone.databases import ddl
from dbclone.server.server import Server
from dbclone.template.template import Template

pytestmark = pytest.mark.slow

SIZE = 4


@pytest.fixture
def place(tmp_path: Path, options: dict[str, str]) -> Place:
    return Place(tmp_path, quick=True, binaries=options.get("binaries", ""))


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A project of four tests."""
    generate(tmp_path / "shop", SIZE)
    return tmp_path / "shop"


def _databases(server: Server) -> set[str]:
    return {
        name
        for (name,) in server.fetch("SELECT datname::text FROM pg_database WHERE datname !~ '_t_'")
    }


@pytest.mark.parametrize("contender", ["recipe", "truncate_all", "truncate", "auto", "none"])
def test_a_very_small_suite_from_end_to_end(
    contender: str, suite: Path, place: Place, server: Server
) -> None:
    before = _databases(server)
    found = Cell("embedded", SIZE, 0, contender).run(suite, server, place)
    assert found["wall_s"] > found["tests_s"] > 0
    assert (
        _databases(server) <= before
    )  # fewer where it has pruned what a killed run of another test had left


def test_it_runs_with_workers(suite: Path, place: Place, server: Server) -> None:
    assert Cell("embedded", SIZE, 2, "auto").run(suite, server, place)["median_ms"] > 0


def test_a_contender_that_leaks_has_no_time(suite: Path, place: Place, server: Server) -> None:
    with pytest.raises(Broken, match=r"4 tests|failed") as caught:
        Cell("embedded", SIZE, 0, "leaky").run(suite, server, place)
    assert "3 failed, 1 passed" in str(caught.value)  # the first one finds empty tables


@pytest.mark.parametrize(
    "change",
    [("drop_tables(models)", "is_closed()"), ('"TRUNCATE {}"', '"SELECT 1 FROM {} LIMIT 0"')],
)
def test_a_contender_that_forgets_to_undo_has_no_time(
    change: tuple[str, str], suite: Path, place: Place, server: Server
) -> None:
    """Not only one that is called leaky: the recipe and TRUNCATE all, broken."""
    harness = suite / "harness.py"
    assert change[0] in harness.read_text()
    harness.write_text(harness.read_text().replace(*change))
    with pytest.raises(Broken):
        Cell("embedded", SIZE, 0, "recipe" if "drop" in change[0] else "truncate_all").run(
            suite, server, place
        )


def test_a_contender_that_fails_loses_its_times_and_spoils_nobody_elses(
    suite: Path, place: Place, server: Server
) -> None:
    """In its second round: the time of its first one goes as well."""
    good, bad = Cell("embedded", SIZE, 0, "none"), Cell("embedded", SIZE, 0, "leaky")
    suites = Suites(place, {"embedded": server}, {bad: [], good: []}, {SIZE: suite})
    suites.runs[bad].append({"round": -1, "wall_s": 1.0})
    suites.rounds()
    assert suites.runs[bad] == []
    assert "1 passed" in suites.failed[bad]
    assert [run["round"] for run in suites.runs[good]] == [0, 1]  # once beside it


def test_without_time_only_what_the_goals_need_is_measured(
    suite: Path, place: Place, server: Server
) -> None:
    place.seconds = -1
    suites = Suites(
        place,
        {"embedded": server},
        {Cell("embedded", SIZE, 0, c): [] for c in ("drop", "auto")},
        {SIZE: suite},
    )
    suites.rounds()
    assert [(cell.contender, len(runs)) for cell, runs in suites.runs.items()] == [
        ("drop", 0),
        ("auto", 1),
    ]
    assert [(cell.contender, why) for cell, why in suites.failed.items()] == [
        ("drop", "there was no time left")
    ]


def test_tests_that_do_not_run_have_no_time(suite: Path, place: Place, server: Server) -> None:
    with pytest.raises(Broken, match="4 tests"):
        Cell("embedded", SIZE + 1, 0, "none").run(suite, server, place)


def test_the_floor_does_the_same_work(suite: Path, place: Place, server: Server) -> None:
    """Statement for statement, by table and verb."""
    counted = """
from shop.models import db
import re

@pytest.fixture(autouse=True)
def _counted(request, monkeypatch):
    said = []
    execute = db.execute_sql
    monkeypatch.setattr(db, "execute_sql", lambda sql, *a, **k: (said.append(str(sql)), execute(sql, *a, **k))[1])
    yield
    with open(f"said-{request.node.name}", "w") as file:
        file.write("\\n".join(said))
"""
    with (suite / "conftest.py").open("a") as file:
        file.write(counted)
    told = {}
    for contender in ("none", "auto"):
        Cell("embedded", SIZE, 0, contender).run(suite, server, place)
        texts = {path.name: path.read_text() for path in sorted(suite.glob("said-*"))}
        told[contender] = {
            name: re.sub(r'"s?[0-9a-f]{32}"', "savepoint", text).splitlines()
            for name, text in texts.items()
        }
    assert len(told["none"]) == SIZE
    assert told["none"] == told["auto"]
    assert min(len(lines) for lines in told["none"].values()) > 5


def test_half_of_the_tests_touch_two_tables_and_half_all_eight(suite: Path) -> None:
    text = "".join(path.read_text() for path in (suite / "tests").iterdir())
    assert (
        text.count("@with_test_db((Category, Product))")
        == text.count("@with_test_db(MODELS)")
        == SIZE // 2
    )


def test_all_sizes_workers_and_contenders_are_measured() -> None:
    chosen = cells(["embedded", DURABLE], quick=False)
    assert {cell.contender for cell in chosen} == set(CONTENDERS)
    for contenders, server in (
        (("recipe", "truncate", "rollback", "auto", "none"), "embedded"),
        (("recipe", "auto", "none"), DURABLE),
    ):
        for contender in contenders:
            found = {
                (cell.size, cell.workers)
                for cell in chosen
                if (cell.server, cell.contender) == (server, contender)
            }
            assert found == {(size, workers) for size in SIZES for workers in (0, 2, 4)}


def test_a_durable_server_has_the_settings_that_postgres_is_shipped_with(place: Place) -> None:
    with place.durable() as server:
        names = ["fsync", "synchronous_commit", "full_page_writes", "autovacuum"]
        assert server.fetch(
            "SELECT count(*) FROM pg_settings WHERE name = ANY(%s) AND setting = 'on'", [names]
        ) == [(4,)]
        ((folder,),) = server.fetch("SELECT current_setting('data_directory')")
        assert Path(folder).is_dir()
    assert not Path(folder).parent.exists()


def test_nothing_is_left_of_a_private_server_when_a_part_fails(place: Place) -> None:
    def fail(server: Server) -> None:
        found.append(server)
        assert server.embedded is not None
        assert server.embedded.home.is_dir()
        raise ZeroDivisionError

    found: list[Server] = []
    with pytest.raises(ZeroDivisionError), place.server() as opened:
        fail(opened)
    private = found[0].embedded
    assert private is not None
    assert not private.home.exists()
    assert private.cluster.pid() is None


def test_copies_are_made_by_all_contenders_and_dropped(server: Server) -> None:
    before = _databases(server)
    sized = Sized.make(server, 8)
    sized.cloned("file_copy", [sized.template])
    sized.handed_over()
    ((folder,),) = server.fetch("SELECT current_setting('data_directory')")
    sized.copied(Path(folder))
    assert [(contender, len(found)) for (contender, _), found in sized.seconds.items()] == [
        ("file_copy", 1),
        (POOL, 1),
        (COPY, 1),
    ]
    assert not (Path(folder) / "base" / "copied").exists()
    assert all(row["median"] > 0 for row in sized.data("here"))
    ddl.drop(server, sized.template.database)
    assert _databases(server) == before


def test_a_crew_runs_tests_and_a_worker_that_ends_is_told(place: Place, server: Server) -> None:
    before = _databases(server)
    with crew(server, place, 2) as workers:
        assert all(worker.answer()["clone_s"] > 0 for worker in workers)
        for reset in ("rollback", "truncate"):
            found = _round(workers, reset, 0.05)
            assert found["tests"] >= 2
            assert found["p95_ms"] >= found["median_ms"] > 0
        workers[0].tell(["rollback", "not a number"])
        with pytest.raises(Failed, match="TypeError"):
            workers[0].answer()
    assert _databases(server) == before


def test_every_control_of_the_start_up_is_measured_too(place: Place) -> None:
    for quick in (True, False):
        place.quick = quick
        contenders = Projects(place).contenders()
        names = [contender.name for contender in contenders]
        assert len(set(names)) == len(names)
        assert {contender.control for contender in contenders} - {""} <= set(names)


def test_parts_are_chosen_by_name_in_their_own_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments([]).parts == list(PARTS)
    assert arguments(["suites", "clone", "--quick"]).parts == ["clone", "suites"]
    with pytest.raises(SystemExit):
        arguments(["suits"])
    assert (
        "there is no part 'suits'; the parts are start-up, reset, clone, scale, peers, suites"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("part", [part for part in PARTS if part != "peers"])
def test_every_part_has_its_module(part: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{PARTS[part][0]}").measure)


def test_a_part_that_fails_keeps_neither_the_others_nor_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever reads the file while the next part runs finds what there is."""
    path = tmp_path / "found.json"
    seen: list[list[str]] = []

    def good(place: Place) -> dict[str, Any]:
        seen.append(list(json.loads(path.read_text())["parts"]))
        return {"rows": [statistics.mean([1, 2])]}

    def bad(place: Place) -> dict[str, Any]:
        raise ValueError("broken")

    for name, measure in (("bad", bad), ("good", good)):
        module = types.ModuleType(f"benchmarks.{name}")
        module.measure = measure  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", module)
    monkeypatch.setattr(
        "benchmarks.__main__.PARTS", {"first": ("bad", 1, 1), "second": ("good", 1, 1)}
    )
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(["--quick", "--json", str(path)]) == 1
    found = json.loads(path.read_text())
    assert found["parts"]["first"]["error"] == "ValueError: broken"
    assert found["parts"]["second"]["rows"] == [1.5]
    assert seen == [["first"]]
    assert found["machine"]["cores"] >= 1


def test_what_a_part_had_when_it_was_ended_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by SIGTERM in its last minute."""

    def ended(place: Place) -> dict[str, Any]:
        place.partial = {"rows": [1]}
        raise SystemExit(143)

    module = types.ModuleType("benchmarks.ended")
    module.measure = ended  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "benchmarks.ended", module)
    monkeypatch.setattr("benchmarks.__main__.PARTS", {"first": ("ended", 1, 1)})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "found.json")])
    part = json.loads((tmp_path / "found.json").read_text())["parts"]["first"]
    assert (part["rows"], part["error"]) == ([1], "SystemExit: 143")


def test_templates_of_all_sizes_are_as_large_as_they_should_be(server: Server) -> None:
    sized = Sized.make(server, 16)
    assert 14 < sized.megabytes < 19
    ddl.drop(server, sized.template.database)
    assert isinstance(sized.template, Template)
