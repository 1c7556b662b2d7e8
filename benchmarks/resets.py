"""What a reset costs along three axes: tables, tables written, and seeded rows; by strategy, in
milliseconds and in pings.

Control: a ping, as in `reset_costs`, whose cases and factors these are; and plain statements over a
kept connection (TRUNCATE, DELETE, create and drop of all tables, TRUNCATE and making the seeds
again), and a fresh clone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .cases import FRESH, Case
from .places import EMBEDDED, GIVEN, Place
from .reset_costs import prepared
from .shop import Shop, Spread, updates

TABLES, SOME = (
    (10, 30, 100, 200, 1000),
    100,
)  # the axis of tables; how many there are along the axis of tables written
WRITTEN = (0, 3, 10, 30, 100)
SEEDS = (0, 1000, 100_000, 1_000_000)
ROUNDS = 4
_RECREATED = 200  # tables; beyond, creating and dropping takes the time of everything else together
CHEAP, DEAR = {"burst": 25, "warm": 3}, {"burst": 2, "warm": 1}


@dataclass(frozen=True)
class Point:
    """A case, and where it is on its axis: `axis` tables, written or seeds, at `value`, with
    strategy `case.reset`."""

    axis: str
    value: int
    case: Case


def points(quick: bool) -> list[Point]:
    """Return everything that is measured."""
    tables, some, seeds = ((10, 30), 30, (0, 1000)) if quick else (TABLES, SOME, SEEDS)
    found = []

    def add(axis: str, value: int, shop: Shop, reset: str, write: Any, **options: Any) -> None:
        few = {**options, "burst": min(options["burst"], 5)} if quick else options
        found.append(
            Point(axis, value, Case(f"{axis} {value}: {reset}", shop, reset, write, **few))
        )

    for count in tables:
        slow = DEAR if count > 100 else {**CHEAP, "burst": 5}
        for reset in ("truncate", "rollback", "delete all"):
            add(
                "tables",
                count,
                Shop(count),
                reset,
                Spread(3),
                **({**CHEAP, "burst": 8} if count > 200 else CHEAP),
            )
        for reset in (
            "truncate all",
            *(["recreate all"] if count <= _RECREATED else []),
            "clone",
            FRESH,
        ):
            add("tables", count, Shop(count), reset, Spread(3), **slow, alone=reset == "clone")
    for count in [count for count in WRITTEN if count <= some]:
        for reset in ("truncate", "rollback", "delete all", "truncate all"):
            add(
                "written",
                count,
                Shop(some),
                reset,
                Spread(count),
                **(DEAR if reset == "truncate all" else CHEAP),
            )
    for count in seeds:
        shop, write = Shop(30, count), updates if count else Spread(3)
        for reset in ("truncate", "rollback", "truncate and seed", FRESH):
            dear = reset not in ("truncate", "rollback") or (count > 1000 and reset == "truncate")
            often = {"burst": 1, "warm": 0} if count > 100_000 and dear else DEAR if dear else CHEAP
            add(
                "seeds",
                count,
                shop,
                reset,
                write,
                **often,
                alone=reset == "truncate" and count > 20_000,
            )
    return found


def measure(place: Place) -> dict[str, Any]:
    """Measure all points in turns and return them as plain data, every sample included."""
    chosen = points(place.quick)
    with prepared(place, False, [point.case for point in chosen]) as way:
        for number in range(1 if place.quick else 2):
            way.measure([point.case for point in chosen], 2 if place.quick else ROUNDS // 2)
            if number == 0 and place.left < 0:
                break
        data = way.data([point.case for point in chosen])
    rows = []
    for point, case in zip(chosen, data["cases"], strict=True):
        samples = [round(sample * 1000, 4) for run in case.pop("runs") for sample in run["samples"]]
        rows.append(
            {
                **case,
                "axis": point.axis,
                "value": point.value,
                "tables": point.case.shop.tables,
                "samples_ms": samples,
            }
        )
    return {"servers": {GIVEN if place.url else EMBEDDED: data["server"]}, "points": rows}
