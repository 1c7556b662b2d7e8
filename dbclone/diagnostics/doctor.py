"""What will fail or is slow on this server, before a test finds out: all checks, and what was
measured."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from ..databases import ddl
from ..errors import Error
from ..server.dsn import mask_any
from .benchmark import COMMITS, TESTS, Measures, compose, measure
from .checks import (
    FAILS,
    NOT_CHECKED,
    OK,
    SLOW,
    WARNING,
    Check,
    Patient,
    background_workers,
    collations,
    connections,
    durability,
    interrupted_drops,
    leftovers,
    lock_folder,
    orphans,
    replication,
    rights,
    role,
    strangers,
    template,
    version,
)

_SLOW_PING, _SLOW_CLONE = 0.005, 1.0  # seconds
CHECKS: tuple[Callable[[Patient], Check], ...] = (
    version, rights, connections, durability, template, role, collations, background_workers,
    leftovers, strangers, interrupted_drops, replication, lock_folder, orphans,
)  # fmt: skip


def examine(patient: Patient) -> list[Check]:
    """Run all checks; one that cannot be made does not keep the others from being made."""
    found = []
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            patient.known = patient.known or ddl.list_databases(patient.server, sizes=True)
            found.append(check(patient))
        except Error as error:
            found.append(Check.of(name, error))
        except psycopg.Error as error:
            found.append(
                Check(
                    name,
                    NOT_CHECKED,
                    " ".join(mask_any(patient.server.dsn.mask(str(error))).split()),
                )
            )
    return found


def measure_speed(
    patient: Patient, progress: Callable[[str], None]
) -> tuple[list[Check], Measures | None]:
    """Measure, and return what is slow."""
    try:
        found = measure(patient.server, patient.template, progress)
    except (Error, psycopg.Error) as error:
        why = " ".join(mask_any(patient.server.dsn.mask(str(error))).split())
        return [
            Check("speed", FAILS, f"a scratch database cannot be made, copied or reset: {why}")
        ], None
    slow = [
        text
        for text, is_so in (
            (f"a round trip takes {found.ping * 1000:.1f} ms", found.ping > _SLOW_PING),
            (f"a clone takes {found.clone:.1f} s", found.clone > _SLOW_CLONE),
        )
        if is_so
    ]
    checks = [
        Check("speed", SLOW if slow else OK, "; ".join(slow) or "round trips and clones are quick")
    ]
    if patient.template is None:
        checks.append(Check("foreign tables", NOT_CHECKED, "there is no template to look into"))
    elif found.foreign_tables:
        why = f"{', '.join(found.foreign_tables)}: what tests write there is never undone"
        checks.append(
            Check("foreign tables", WARNING, why, "Replace them by local tables in tests.")
        )
    else:
        checks.append(Check("foreign tables", OK, "the template has none"))
    return checks, found


def advice(patient: Patient, found: Measures) -> list[str]:
    """Return what durability costs, and how to be rid of it."""
    if not patient.server.facts.durable:
        return ["durability costs nothing here: fsync is off"]
    return [
        f"durability costs about {found.durability:.2g} s per run of {TESTS} tests that commit"
        f" ({COMMITS} commits each, and the reset's; reckoned from the commits measured above)."
        " Tests under rollback do not wait for the disk.",
        "These remove it, for a throw-away server ONLY, because a crash may destroy every"
        " database on it:",
        *compose(patient.server.facts.major).splitlines(),
    ]
