"""What clones and resets cost: added up, sent from workers to the controller, and told in few
lines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbclone.clone.report import Report, shown, template_line

KIND = st.sampled_from(["rollback", "truncate", "clone", "drop"])
SECONDS = st.integers(0, 2**20).map(
    lambda n: n / 1024
)  # which add up without rounding, in whatever order
EVENT = (
    st.tuples(st.just("clone"), SECONDS)
    | st.tuples(st.just("reset"), KIND, SECONDS, st.sampled_from(["test_a", "test_b", "test_c"]))
    | st.tuples(st.just("note"), st.sampled_from(["one", "two", "three"]))
    | st.tuples(st.just("escaped"), st.sampled_from(["test_a", "test_b", "test_c"]))
)


def report(events: list[tuple[Any, ...]]) -> Report:
    found = Report()
    for act, *arguments in events:
        if act != "escaped":
            getattr(found, act)(*arguments)
        elif arguments[0] not in found.escaped:
            found.escaped.append(arguments[0])
    return found


def merged(*reports: Report) -> Report:
    found = Report()
    for other in reports:
        found.merge(other)
    return found


@given(parts=st.lists(st.lists(EVENT, max_size=6), max_size=4))
def test_merged_reports_say_what_one_worker_would_have_said(
    parts: list[list[tuple[Any, ...]]],
) -> None:
    together = report([event for part in parts for event in part])
    assert merged(*map(report, parts)) == together
    assert merged(*(Report.of(report(part).data()) for part in parts)) == together
    resets = [event for part in parts for event in part if event[0] == "reset"]
    assert together.resets == Counter(event[1] for event in resets)
    assert together.worst_seconds == max((event[2] for event in resets), default=0)
    assert not together.worst or ("reset", together.worst_seconds, together.worst) in {
        (e[0], e[2], e[3]) for e in resets
    }
    assert len(together.notes) == len(set(together.notes))


def _unordered(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "worst": "", "notes": sorted(data["notes"]), "escaped": sorted(data["escaped"])}


@given(one=st.lists(EVENT, max_size=6), other=st.lists(EVENT, max_size=6))
def test_whoever_comes_first_the_figures_are_the_same(
    one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]
) -> None:
    forth, back = (
        merged(report(one), report(other)).data(),
        merged(report(other), report(one)).data(),
    )
    assert _unordered(forth) == _unordered(back)


@given(events=st.lists(EVENT, max_size=8))
def test_what_is_sent_is_plain_data_and_what_arrives_is_the_same_and_nobody_elses(
    events: list[tuple[Any, ...]],
) -> None:
    """xdist sends None, numbers, text, lists and dictionaries; a Counter it does not."""
    found = report(events)
    data = found.data()
    assert set(data) == {field.name for field in fields(Report)}
    assert json.loads(json.dumps(data)) == data
    assert all(type(value) in (int, float, str, dict, list) for value in data.values())
    again = Report.of(data)
    assert again == found
    again.reset("rollback", 1.0, "test_later")
    again.note("later")
    again.escaped.append("test_later")
    assert Report.of(data) == found
    assert found == report(events)


def test_the_first_of_equally_dear_resets_is_named_and_a_note_once() -> None:
    found = report(
        [
            ("reset", "rollback", 0.5, "test_a"),
            ("reset", "truncate", 0.5, "test_b"),
            ("note", "x"),
            ("note", "x"),
        ]
    )
    assert (found.worst, found.notes) == ("test_a", ["x"])


def test_the_summary_has_a_line_for_each_thing_that_happened() -> None:
    assert Report().lines() == []
    resets = [
        ("truncate", 0.003, "test_a"),
        ("rollback", 0.0001, "test_b"),
        ("truncate", 0.001, "test_c"),
    ]
    found = report(
        [
            ("clone", 0.25),
            ("clone", 1.0),
            *(("reset", *reset) for reset in resets),
            ("note", "mind the gap"),
        ]
    )
    assert found.lines() == [
        "2 clones in 1.25 s",
        "1 x rollback in 0.1 ms (0.1 ms each)",
        "2 x truncate in 4 ms (2 ms each)",
        "dearest reset: 3 ms after test_a",
        "mind the gap",
    ]
    assert report([("clone", 0.0123)]).lines() == ["1 clone in 12.3 ms"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 ms"),
        (0.00012345, "0.123 ms"),
        (0.5, "500 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.00 s"),
        (1.0, "1.00 s"),
        (75.5, "75.50 s"),
    ],
)
def test_a_duration_is_told_with_the_unit_that_suits_it(seconds: float, expected: str) -> None:
    assert shown(seconds) == expected


@pytest.mark.parametrize(
    ("built", "why", "expected"),
    [
        (False, (), "template t reused in 2.00 s"),
        (True, (), "template t built in 2.00 s"),
        (True, ("a changed", "b is new"), "template t built in 2.00 s because a changed; b is new"),
        (True, tuple("abcde"), "template t built in 2.00 s because a; b; c; d; e"),
        (True, tuple("abcdefg"), "template t built in 2.00 s because a; b; c; d; e; and 2 more"),
    ],
)
def test_a_line_says_what_became_of_the_template(
    built: bool, why: tuple[str, ...], expected: str
) -> None:
    assert template_line("t", built, 2.0, why) == expected
