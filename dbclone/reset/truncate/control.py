"""The control session: dbclone's own view of a database, apart from whatever the application's
sessions are doing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..transactions import NOW, CommitTracker, Moment, Verdict


class CannotRestore(Exception):
    """The database cannot be made equal to its template, and why."""


@dataclass(frozen=True)
class ResetContext:
    """What a reset has to know of where it runs.

    `name` of the database; `superuser`, `durable`, of the server; `lock_timeout` in seconds;
    `terminate`, end sessions that are in the way; `clone_seconds`, what a fresh clone costs;
    `spared`, returns the process ids of our own sessions; `sibling`, makes another copy of the
    template for a block and connects to it; `layered`, whether there are rows that are not
    committed but stay, with numbers from sequences, which therefore must not be put back.
    """

    name: str
    superuser: bool
    durable: bool
    lock_timeout: float
    terminate: bool = False
    clone_seconds: float = 0.1
    spared: Callable[[], list[int]] = field(default=lambda: [])
    sibling: Callable[[], AbstractContextManager[psycopg.Connection[Any]]] | None = None
    layered: Callable[[], bool] = field(default=lambda: False)


def options(superuser: bool, lock_timeout: float) -> str:
    """Return the libpq options of a control session.

    As a superuser it is one in which the user's triggers and the checks of foreign keys sleep; a
    policy that would narrow a DELETE is an error; nobody waits for the disk, because what a crash
    could lose is a reset that will be done again.
    """
    role = "-c session_replication_role=replica " if superuser else ""
    return (
        f"{role}-c row_security=off -c synchronous_commit=off -c"
        f" plan_cache_mode=force_generic_plan -c jit=off"
        f" -c lock_timeout={max(1, round(lock_timeout * 1000))} -c client_min_messages=error"
        # How values are written, so that what is remembered as text comes back exactly, whatever
        # the database's own settings.
        " -c extra_float_digits=3 -c DateStyle=ISO -c IntervalStyle=postgres -c"
        " bytea_output=hex -c TimeZone=UTC"
    )


def nothing_committed(control: psycopg.Connection[Any], commits: CommitTracker) -> bool:
    """Return whether every transaction on the server since the last reset was rolled back."""
    row = control.cursor(row_factory=tuple_row).execute(commits.text).fetchone() or ()
    return commits.classify(Moment.of(tuple(row)), row[2]) is Verdict.NOTHING


def now(connection: psycopg.Connection[Any]) -> Moment:
    """Return the present moment."""
    return Moment.of(
        tuple(
            connection.cursor(row_factory=tuple_row).execute(f"SELECT {NOW}".encode()).fetchone()
            or ()
        )
    )
