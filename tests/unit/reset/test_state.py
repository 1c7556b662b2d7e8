"""What tests start from and how a database is between two of them: the whole table of what changes
either."""

from __future__ import annotations

import itertools

import pytest

from dbclone.reset.state import Condition, Event, Start, after

T, S = Start.TEMPLATE, Start.SESSION_DATA
EQUAL, DIRTY, EMPTY = Condition.EQUAL, Condition.DIRTY, Condition.EMPTY
TABLE = {
    (T, EQUAL): {"COPIED": (T, EQUAL), "WROTE": (S, EQUAL), "ELSEWHERE": (T, EQUAL), "LEFT": (T, DIRTY), "EMPTIED": (T, EMPTY), "BUILT": (T, EQUAL)},
    (T, DIRTY): {"COPIED": (T, EQUAL), "WROTE": (S, DIRTY), "ELSEWHERE": (T, DIRTY), "LEFT": (T, DIRTY), "EMPTIED": (T, EMPTY), "BUILT": (T, EQUAL)},
    (T, EMPTY): {"COPIED": (T, EQUAL), "WROTE": (S, EMPTY), "ELSEWHERE": (T, EMPTY), "LEFT": (T, EMPTY), "EMPTIED": (T, EMPTY), "BUILT": (T, EQUAL)},
    (S, EQUAL): {"COPIED": (S, EQUAL), "WROTE": (S, EQUAL), "ELSEWHERE": (T, EQUAL), "LEFT": (S, DIRTY), "EMPTIED": (S, EMPTY), "BUILT": (S, EQUAL)},
    (S, DIRTY): {"COPIED": (S, EQUAL), "WROTE": (S, DIRTY), "ELSEWHERE": (T, DIRTY), "LEFT": (S, DIRTY), "EMPTIED": (S, EMPTY), "BUILT": (S, EQUAL)},
    (S, EMPTY): {"COPIED": (S, EQUAL), "WROTE": (S, EMPTY), "ELSEWHERE": (T, EMPTY), "LEFT": (S, EMPTY), "EMPTIED": (S, EMPTY), "BUILT": (S, EQUAL)},
}  # fmt: skip


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(itertools.product(Start, Condition))
    assert all(set(row) == {event.name for event in Event} for row in TABLE.values())


@pytest.mark.parametrize("event", Event)
def test_an_event_leads_where_the_table_says(event: Event) -> None:
    assert {state: after(*state, event) for state in TABLE} == {
        state: row[event.name] for state, row in TABLE.items()
    }
