"""Which means empties which tables: decided from sizes and costs, without a server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dbclone.reset.truncate.catalog import SchemaCatalog, Table
from dbclone.reset.truncate.plan import PAGE, Costs, plan


def facts(*tables: Table, references: tuple[tuple[int, int], ...] = ()) -> SchemaCatalog:
    return SchemaCatalog(
        tables, frozenset(references), (), (), {table.oid: table for table in tables}
    )


A, B, C = (Table(oid, "public", name) for oid, name in ((1, "a"), (2, "b"), (3, "c")))
SEED = Table(9, "public", "seed", seeded=True)
COSTS = Costs(page=1e-3, truncate=10e-3)


def shown(made: object) -> list[str]:
    return [statement.as_string(None) for statement in made.statements]  # type: ignore[attr-defined]


def test_small_tables_are_deleted_from_in_one_statement_whatever_references_what() -> None:
    made = plan(facts(A, B, references=((2, 1), (1, 2))), {1: PAGE, 2: PAGE}, COSTS)
    assert shown(made) == [
        'WITH "d0" AS (DELETE FROM ONLY "public"."a") DELETE FROM ONLY "public"."b"'
    ]


def test_a_table_that_grew_dearer_to_delete_from_is_truncated_with_those_that_reference_it() -> (
    None
):
    """11 pages cost 11 ms by DELETE, 10 ms by TRUNCATE; with a referencing table, 20 ms."""
    assert shown(plan(facts(A, B), {1: 11 * PAGE}, COSTS)) == ['TRUNCATE ONLY "public"."a"']
    assert shown(plan(facts(A, B, references=((2, 1),)), {1: 11 * PAGE}, COSTS)) == [
        'DELETE FROM ONLY "public"."a"'
    ]
    assert shown(plan(facts(A, B, references=((2, 1),)), {1: 21 * PAGE}, COSTS)) == [
        'TRUNCATE ONLY "public"."a", ONLY "public"."b"'
    ]
    assert shown(plan(facts(A, B), {1: 11 * PAGE, 2: PAGE}, COSTS)) == [
        'TRUNCATE ONLY "public"."a"',
        'DELETE FROM ONLY "public"."b"',
    ]


def test_never_cascade() -> None:
    """C4."""
    for rows in (PAGE, 1000 * PAGE):
        made = plan(facts(A, B, C, references=((2, 1), (3, 2))), {1: rows}, COSTS)
        assert "CASCADE" not in " ".join(shown(made))


def test_a_table_that_delete_cannot_empty_truly_is_truncated_however_small() -> None:
    assert shown(plan(facts(replace(A, undeletable=True)), {1: PAGE}, COSTS)) == [
        'TRUNCATE ONLY "public"."a"'
    ]


@pytest.mark.parametrize("keeper", [replace(SEED, oid=2), replace(B, untruncatable=True)])
def test_rows_to_keep_are_never_truncated_to_reach_others(keeper: Table) -> None:
    """A large table is deleted from instead; one that cannot be is a case for a fresh clone."""
    assert shown(plan(facts(A, keeper, references=((2, 1),)), {1: 1000 * PAGE}, COSTS)) == [
        'DELETE FROM ONLY "public"."a"'
    ]
    made = plan(facts(replace(A, undeletable=True), keeper, references=((2, 1),)), {1: PAGE}, COSTS)
    assert not made.statements
    assert "public.a" in made.impossible


def test_a_kept_table_is_not_named_even_if_it_references() -> None:
    """SchemaCatalog leave kept tables out; their references are refused earlier, and here a
    TRUNCATE that would need them is."""
    assert shown(plan(facts(A, references=((77, 1),)), {1: 1000 * PAGE}, COSTS)) == [
        'DELETE FROM ONLY "public"."a"'
    ]


def test_costs_follow_what_the_server_takes() -> None:
    costs = Costs.start(durable=True)
    assert costs.truncate > Costs.start(durable=False).truncate
    learned = costs.learn(pages=0, truncated=2, seconds=0.1)
    assert costs.truncate < learned.truncate < 0.05
    assert learned.page == costs.page
    assert costs.learn(pages=100, truncated=0, seconds=1).page > costs.page
    assert costs.learn(pages=1, truncated=0, seconds=1) == costs
    assert costs.learn(pages=10, truncated=1, seconds=1) == costs
