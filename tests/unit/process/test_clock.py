"""Waiting by a clock that no test can stop."""

from __future__ import annotations

import pytest

from dbclone.process import clock
from dbclone.process.clock import wait_until, wait_while


class Time:
    """A clock that goes on only while somebody sleeps, and notes for how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses = 100.0, list[float]()
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def test_what_is_so_already_is_not_waited_for(time: Time) -> None:
    assert wait_until(lambda: "done", 5) == "done"
    assert wait_while(lambda: list[int](), 5) == []
    assert time.pauses == []


def test_it_is_asked_until_the_answer_is_true(time: Time) -> None:
    answers = [None, None, "done", "not asked"]
    assert wait_until(lambda: answers.pop(0), 5, 0.25) == "done"
    assert (time.pauses, answers) == ([0.25, 0.25], ["not asked"])


def test_who_is_left_at_the_end_is_returned(time: Time) -> None:
    left = [["a", "b"], ["b"], ["b"], ["b"]]
    assert wait_while(lambda: left.pop(0), 0.5, 0.25) == ["b"]
    assert len(left) == 1


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_without_time_it_is_asked_once(time: Time, timeout: float) -> None:
    asked: list[float] = []
    assert wait_until(lambda: asked.append(time.now), timeout) is None
    assert (asked, time.pauses) == ([100.0], [])


def test_it_is_asked_once_more_after_the_time_is_over(time: Time) -> None:
    """As by a process that was stopped for a minute in the middle of a question."""

    def answer() -> bool:
        came_true = time.now > 130
        time.now += 60
        return came_true

    assert wait_until(answer, 1) is True


def test_pauses_grow_as_far_as_they_may(time: Time) -> None:
    assert wait_until(lambda: False, 3.5, 0.5, longest=1.0) is False
    assert time.pauses == [0.5, 0.75, 1.0, 1.0, 1.0]


def test_pauses_stay_as_they_are_unless_they_may_grow(time: Time) -> None:
    wait_until(lambda: False, 0.75, 0.25)
    assert time.pauses == [0.25, 0.25, 0.25]


def test_what_the_question_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 / 0, 5)
