"""Whether thousands of resets wear a database out: how long they take at the start and in the end,
and a query over the tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.template.template import Template

from .cases import Case, Contender
from .pings import Run
from .shop import Shop, inserts

_ROWS = 100
_PROBES = 21
_TIMES = 10  # that both get new sessions
_WARM = 30  # tests before a clone's resets are what they stay: statements are prepared, caches are filled


def worn(
    server: Server,
    template: Template,
    shop: Shop,
    reset: str,
    count: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Reset a clone `count` times after tests that write to three tables, and return what that
    changed, as plain data.

    The last resets take turns with those of a fresh clone: the machine's pace changes more in the
    meantime than anything else. Before and after, a query joins the three tables with 100 rows in
    each, in a test of its own: its time and its plan tell whether dead rows and stale statistics
    reach the tests.
    """
    case = Case(f"{count:,} x {reset}, 3 of {shop.tables} tables written", shop, reset, inserts)
    run = Run()
    with case.opened(server, template) as contender, template.clone("probe") as other:
        clone = contender.clone
        assert clone is not None
        before = _probe(shop, clone, reset)
        contender.act(run)
        for number in range(count):
            run.samples.append(contender.act(None))
            if (number + 1) % 1000 == 0:
                say(f"{case.name}: {number + 1:,}")
        contender.finish(run)
        # And in a clone that nothing has worn out, at the same time of day.
        head = min(200, count // 3)
        with case.opened(server, template) as unworn:
            pairs = [
                pair
                for _ in range(_TIMES)
                for pair in _side_by_side(contender, unworn, max(1, head // _TIMES))
            ]
        fresh, after = _probe(shop, other, reset), _probe(shop, clone, reset)
    first, last = (statistics.median(pair[one] for pair in pairs) * 1000 for one in (1, 0))
    return {
        "name": case.name,
        "reset": reset,
        "count": count,
        "head": head,
        "first_ms": first,
        "last_ms": last,
        "ratio": statistics.median(worn / new for worn, new in pairs),
        "worst_ms": max(run.samples) * 1000,
        "looks": run.looks,
        "probe_before": before,
        "probe_fresh": fresh,
        "probe_after": after,
        "same_plan": before["plan"] == after["plan"],
    }


def _side_by_side(worn: Contender, new: Contender, count: int) -> list[tuple[float, float]]:
    """Reset both by turns. With sessions of their own each time: on which core a server process
    happens to run makes up to half of a rollback's cost, and stays so for thousands of them."""
    for contender in (worn, new):
        assert contender.clone is not None
        contender.clone.state.disconnect()
        for _ in range(_WARM):
            contender.act(None)
    return [(worn.act(None), new.act(None)) for _ in range(count)]


def _probe(shop: Shop, clone: Clone, reset: str) -> dict[str, Any]:
    """Return plan and time of a join of the three tables with rows in them, and how many pages they
    have."""
    customer, purchase, item = shop.family
    query = sql.SQL(
        "SELECT count(*) FROM {} AS c JOIN {} AS p ON p.parent = c.id JOIN {} AS i ON"
        " i.parent = p.id WHERE i.note > 'note 5'"
    ).format(customer, purchase, item)
    with clone.isolated(reset, "probe") as isolation:
        connection = isolation.connect(autocommit=True)
        _fill(connection, shop)
        plan, costs = (
            "\n".join(
                line
                for (line,) in connection.execute(
                    sql.SQL("EXPLAIN ({}) {}").format(sql.SQL(option), query)
                )
            )
            for option in ("COSTS OFF", "COSTS ON")
        )
        times = []
        for _ in range(_PROBES):
            started = time.perf_counter()
            connection.execute(query, prepare=False).fetchall()
            times.append(time.perf_counter() - started)
        pages = [
            connection.execute(_PAGES, [name.as_string(connection)]).fetchall()[0][0]
            for name in shop.family
        ]
    return {
        "plan": plan,
        "plan_with_costs": costs,
        "query_ms": statistics.median(times) * 1000,
        "pages": pages,
    }


_PAGES = "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int"


def _fill(connection: psycopg.Connection[Any], shop: Shop) -> None:
    """Put a hundred rows into each of the three tables, each referencing one of the table before
    it."""
    customer, *others = shop.family
    filled = "INSERT INTO {} (note) SELECT 'note ' || n FROM generate_series(1, {}) AS n"
    connection.execute(sql.SQL(filled).format(customer, sql.Literal(_ROWS)))
    previous = customer
    for name in others:
        filled = "INSERT INTO {} (parent, note) SELECT id, note FROM {}"
        connection.execute(sql.SQL(filled).format(name, previous))
        previous = name
