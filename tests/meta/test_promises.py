"""No promise without its test, and no excuse for one that has a test."""

from __future__ import annotations

import pytest

from . import promises


@pytest.mark.parametrize("name", promises.IDS)
def test_a_promise_has_a_test_that_names_it_or_a_reason_why_it_has_none(name: str) -> None:
    tried, excused = promises.named(), promises.untried()
    assert (name in tried) != (name in excused), (
        f"{name}: tests {tried.get(name)}, excuse {excused.get(name)}"
    )
    if name in excused:
        assert len(excused[name]["why"]) > 20, name
        assert len(excused[name]["instead"]) > 20, name


def test_nothing_is_named_that_was_never_promised() -> None:
    assert set(promises.named()) | set(promises.untried()) <= set(promises.IDS)
