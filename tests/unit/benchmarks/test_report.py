"""The report of the benchmarks says what the JSON says, and nothing else: goals, losing cases,
failures, plots and the README."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import svg
from benchmarks.pairs import confidence, ratios, summary
from benchmarks.plots import plots
from benchmarks.report import BEGIN, END, HERE, inserted, main, report
from benchmarks.report import summary as readme_part
from benchmarks.suites import CONTENDERS
from benchmarks.verdicts import Verdict, verdicts

RECORDED = Path(__file__).parent / "benchmark.json"
README = HERE.parent / "README.md"


@pytest.fixture
def found() -> dict[str, Any]:
    """What a quick run found once; its part peers had failed."""
    recorded: dict[str, Any] = json.loads(RECORDED.read_text())
    return recorded


def _walls(
    found: dict[str, Any], server: str, workers: int, contender: str, walls: list[float]
) -> None:
    """Let a contender's suite have taken so many seconds."""
    for cell in found["parts"]["suites"]["cells"]:
        if (cell["server"], cell["workers"], cell["contender"]) == (server, workers, contender):
            cell["runs"] = [
                {**cell["runs"][0], "round": n, "wall_s": wall} for n, wall in enumerate(walls)
            ]


def _goal(found: dict[str, Any], words: str) -> Verdict:
    return next(verdict for verdict in verdicts(found["parts"]) if words in verdict.goal)


def test_a_goal_is_judged_pair_by_pair(found: dict[str, Any]) -> None:
    """Each round by itself: the machine was twice as slow in the second round, for both."""
    for workers in (0, 2):
        _walls(found, "embedded", workers, "none", [2.0, 4.0, 2.0])
        _walls(found, "embedded", workers, "rollback", [2.02, 4.04, 2.0])
    verdict = _goal(found, "`rollback`")
    assert [measured.ratio for measured in verdict.measured] == pytest.approx([1.01, 1.01])
    assert verdict.reached == 2
    assert verdict.pooled == pytest.approx(1 - 1 / 2**6)
    _walls(found, "embedded", 2, "rollback", [2.2, 4.4, 2.0])
    verdict = _goal(found, "`rollback`")
    assert verdict.reached == 1
    assert verdict.worst is not None
    assert "2 workers" in verdict.worst.where
    assert "**missed** in 1 of 2" in report(found)


@pytest.mark.parametrize(("walls", "reached"), [([30.0], 1), ([9.0], 0)])
def test_a_goal_of_at_least_so_much(
    found: dict[str, Any], walls: list[float], reached: int
) -> None:
    _walls(found, "embedded", 2, "auto", [2.0])
    _walls(found, "durable", 0, "recipe", walls)
    verdict = _goal(found, "over the default")
    assert (len(verdict.measured), verdict.reached) == (1, reached)


def test_what_was_not_measured_is_neither_reached_nor_missed(found: dict[str, Any]) -> None:
    assert not _goal(found, "best peer").measured
    assert "| best peer over `auto`, per test | ≥ 3 | not measured |" in report(found)


def test_the_best_peer_is_held_against_auto(found: dict[str, Any]) -> None:
    def row(name: str, package: str, costs: list[float]) -> dict[str, Any]:
        runs = [{"isolation": [cost / 1000]} for cost in costs]
        told = {"median": costs[0], "p95": costs[0], "p99": costs[0]}
        extremes = {"median": 1.0, "min": 1.0, "max": 2.0}
        probed = {"undoes": {"DDL": package == "good", "sequences": None}, "error": None}
        floor = "" if package == "none" else "floor"
        return {
            "name": name,
            "package": package,
            "floor": floor,
            "per_test_ms": told,
            "suite_s": extremes,
            "runs": runs,
            **probed,
        }

    rows = [
        row("no isolation", "none", [0.1]),
        row("dbclone auto", "pytest-dbclone", [1.0, 2.0]),
        row("slow", "slow", [90.0, 90.0]),
    ]
    found["parts"]["peers"] = {"rows": [*rows, row("good", "good", [4.0, 7.0])]}
    rows[1]["undoes"]["DDL"] = True
    rows.append(row("cheap", "cheap", [2.0, 2.0]))
    found["parts"]["peers"]["rows"].append(rows[-1])
    (measured,) = _goal(found, "best peer").measured
    assert measured.where == "cheap"
    (measured,) = _goal(found, "undoes all").measured
    assert measured.where == "good"
    assert list(measured.values) == pytest.approx([4.0, 3.5])
    text = report(found)
    assert "| DDL | **no** | yes | **no** | yes | **no** |" in text
    assert "| sequences | ? |" in text
    assert "good" in plots(found["parts"])["peers.svg"]


def test_how_sure_a_goal_is() -> None:
    assert confidence([1.0] * 5, 1.05) == pytest.approx(31 / 32)
    assert confidence([1.0, 1.0, 2.0, 2.0], 1.05) == pytest.approx(5 / 16)
    assert confidence([9.0], 10, at_most=False) == 0
    assert confidence([], 1) == 0.5
    assert ratios({0: 2.0, 1: 3.0}, {1: 2.0, 2: 1.0}) == [1.5]
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}


def test_every_contender_and_every_part_stays_in(found: dict[str, Any]) -> None:
    """The losing ones too."""
    text = report(found)
    for name in CONTENDERS.values():
        assert f"\n| {name} | " in text
    for part in found["parts"]:
        assert f"\n## {part.capitalize()}\n" in text
    for row in found["parts"]["start-up"]["rows"]:
        assert f"| {row['name']} |" in text
    assert "**not from this machine**" in text
    assert "| fsync | off | on |" in text
    assert "figures mean nothing" in text
    assert "figures mean nothing" not in report({**found, "quick": False})


def test_a_part_that_failed_says_so(found: dict[str, Any]) -> None:
    assert "**This part failed:** `ModuleNotFoundError" in report(found)


@pytest.mark.parametrize("part", ["suites", "reset", "clone", "start-up", "scale", None])
def test_a_run_of_one_part_has_a_report(found: dict[str, Any], part: str | None) -> None:
    found["parts"] = {name: data for name, data in found["parts"].items() if name == part}
    text = report(found)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Goals",
        *([f"## {part.capitalize()}"] if part else []),
    ]
    assert readme_part(found)


def test_plots_are_drawn_within_their_frame(found: dict[str, Any]) -> None:
    drawn = plots(found["parts"])
    assert len(drawn) == 8
    for text in drawn.values():
        root = ElementTree.fromstring(text)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        shapes = [
            shape
            for shape in root.iter()
            if shape.tag.rpartition("}")[2] in ("line", "rect", "circle", "text")
        ]
        for shape in shapes:
            for key, most in (
                ("x", width),
                ("x1", width),
                ("x2", width),
                ("cx", width),
                ("y", height),
                ("y1", height),
                ("cy", height),
            ):
                assert 0 <= float(shape.attrib.get(key, 0)) <= most
            if shape.text and shape.tag.endswith("text"):
                x, long = (
                    float(shape.attrib["x"]),
                    6.5 * len(shape.text),
                )  # about what a letter is wide
                begin = {"start": x, "middle": x - long / 2, "end": x - long}[
                    shape.attrib["text-anchor"]
                ]
                assert begin >= 0, shape.text
                assert begin + long <= width, shape.text
        assert "prefers-color-scheme:dark" in text


def test_a_plot_names_everything_that_it_draws(found: dict[str, Any]) -> None:
    drawn = plots(found["parts"])
    assert all(f">{name}<" in drawn["suites-embedded.svg"] for name in CONTENDERS.values())
    assert ">dbclone rollback<" in drawn["reset-tables.svg"]
    assert ">create and drop all<" in drawn["reset-tables.svg"]
    assert "&lt;b&gt;" in svg.bars("<b>", "s", ["one"], [("a", [svg.Value(1, 1, 1)], False)])


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_their_ground(dark: bool) -> None:
    """By WCAG 2: 3 to 1 for what is drawn, 7 to 1 for text."""
    (style,) = re.findall(
        r"<style>(.*)</style>", svg.bars("t", "s", ["one"], [("a", [svg.Value(1, 1, 1)], False)])
    )
    light, _, night = style.partition("@media (prefers-color-scheme:dark)")
    rules = dict(re.findall(r"\.(\w+)\{fill:(#\w{6})\}", night if dark else light))
    ground = _luminance(rules.pop("paper"))
    assert len(rules) == 8
    for name, colour in rules.items():
        low, high = sorted((ground, _luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= (7 if name == "ink" else 3), name


def test_the_readme_has_its_part_between_markers() -> None:
    text = README.read_text()
    changed = inserted(text, "what was measured")
    assert f"{BEGIN}\nwhat was measured\n{END}" in changed
    assert changed.partition(BEGIN)[0] == text.partition(BEGIN)[0]
    assert changed.partition(END)[2] == text.partition(END)[2]
    with pytest.raises(ValueError, match="there is no"):
        inserted("no markers", "what was measured")


def test_all_files_are_written_and_old_plots_go(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.svg").write_text("")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main([str(RECORDED), "--out", str(tmp_path), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "benchmarks/plots/suites-durable.svg" in text
    linked = set(re.findall(r"\((plots/[\w-]+\.svg)\)", (tmp_path / "RESULTS.md").read_text()))
    assert linked == {f"plots/{path.name}" for path in (tmp_path / "plots").iterdir()}
    assert found == json.loads(RECORDED.read_text())


def test_a_report_changes_nothing_of_what_was_found(found: dict[str, Any]) -> None:
    before = copy.deepcopy(found)
    report(found)
    assert found == before
