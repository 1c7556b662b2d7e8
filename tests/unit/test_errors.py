"""Errors: all of them can be caught by name, sent between processes, and are printed in three parts.
That they have all three wherever they are made is a rule of meta/test_error_messages.py."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dbclone
from dbclone import errors
from dbclone.errors import BuildFailed, Error, redacted, safe_str, shown_cause

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, Error)
}


def test_every_class_is_at_the_front_door() -> None:
    assert set(CLASSES) <= set(dbclone.__all__)
    for name, kind in CLASSES.items():
        assert getattr(dbclone, name) is kind
        assert (kind.__module__, kind.__qualname__) == ("dbclone", name)
        assert kind.__doc__
    assert set(CLASSES) == {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }


def test_the_drawn_tree_is_the_tree() -> None:
    """In the module's docstring a class stands three columns to the right of its base."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        start = len(line) - len(line.lstrip(" │├└─"))
        name = line[start:].partition(" ")[0]
        if name in CLASSES:
            above = [(column, base) for column, base in above if column < start]
            drawn[name] = above[-1][1] if above else "Exception"
            above.append((start, name))
    assert drawn == {
        name: kind.__base__.__name__ for name, kind in CLASSES.items() if kind.__base__ is not None
    }


@pytest.mark.parametrize("name", CLASSES)
@given(message=st.text(), detail=st.text(), hint=st.text())
def test_all_three_parts_survive_pickling(name: str, message: str, detail: str, hint: str) -> None:
    error = CLASSES[name](message, detail, hint)
    for again in (
        *(pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)),
        copy.deepcopy(error),
    ):
        assert type(again) is CLASSES[name]
        assert (again.message, again.detail, again.hint, again.args) == (
            message,
            detail,
            hint,
            (message, detail, hint),
        )
        assert str(again) == str(error)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("no",), ["no"]),
        (("no", "It is so."), ["no", "DETAIL:  It is so."]),
        (("no", "", "Look."), ["no", "HINT:  Look."]),
        (("no", "a\nb", "c\nd"), ["no", "DETAIL:  a", "         b", "HINT:  c", "       d"]),
    ],
)
def test_an_error_prints_as_the_server_prints_its_own(
    parts: tuple[str, ...], expected: list[str]
) -> None:
    assert str(BuildFailed(*parts)).splitlines() == expected
    assert "".join(traceback.format_exception_only(BuildFailed(*parts))).splitlines() == [
        f"dbclone.BuildFailed: {expected[0]}",
        *expected[1:],
    ]


def hide(text: str) -> str:
    return text.replace("s3cr3t", "***")


def test_an_exception_that_cannot_be_printed_is_said_so() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert safe_str(Silent()) == "(it cannot be printed)"
    assert safe_str(ValueError("a")) == "a"
    assert str(redacted(Silent("s3cr3t"), hide)).startswith("Silent: (it cannot be printed)")


def test_in_the_place_of_an_error_that_could_show_a_secret_stands_one_of_ours() -> None:
    def fails() -> None:
        raise ValueError("s3cr3t")

    def wraps() -> None:
        try:
            fails()
        except ValueError as error:
            raise BuildFailed("no", "It was s3cr3t.", "Look.") from error

    with pytest.raises(BuildFailed) as caught:
        wraps()
    shown = redacted(caught.value, hide)
    assert "s3cr3t" not in "".join(traceback.format_exception(shown))
    assert (type(shown), shown.args, shown.__cause__, shown.__traceback__) == (
        BuildFailed,
        ("no", "It was ***.", "Look."),
        None,
        None,
    )
    other = redacted(caught.value.__cause__ or caught.value, hide)
    assert isinstance(other, BuildFailed)
    assert (other.message, other.__traceback__) == ("ValueError: ***", None)
    assert "in fails" in other.detail
    assert "s3cr3t" not in str(other)


def test_a_cause_whose_traceback_shows_a_secret_is_not_shown() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        raise ValueError("no")
    assert shown_cause(caught.value, hide) is caught.value
    with pytest.raises(ValueError, match="no") as caught:
        raise ValueError("no")  # s3cr3t
    assert shown_cause(caught.value, hide) is None
