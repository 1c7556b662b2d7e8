"""No promise without its test, and no id that stands for none."""

from __future__ import annotations

import itertools

from . import promises


def test_every_promise_has_a_test_that_names_it() -> None:
    assert [name for name in promises.PROMISES if name not in promises.named()] == []


def test_nothing_is_named_that_was_never_promised() -> None:
    assert {
        name: tests for name, tests in promises.named().items() if name not in promises.PROMISES
    } == {}


def test_the_ids_of_each_kind_are_numbered_without_a_gap() -> None:
    """A promise that is taken back is said so, and its number is not used again."""
    for kind, names in itertools.groupby(promises.PROMISES, lambda name: name[0]):
        found = list(names)
        assert found == [f"{kind}{number}" for number in range(1, len(found) + 1)]
    assert "".join(dict.fromkeys(name[0] for name in promises.PROMISES)) == "ABCDEFS"
