"""Who is in the way of a reset: sessions that hold locks, or have written in a transaction that is
still open; and ending them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ...errors import ResetBlocked
from ...process.clock import wait_while
from ...server.sessions import Identity

# pg_locks shows everybody's locks to everybody; of others' sessions a plain role sees who and from
# where, not what they run. ExclusiveLock on a transactionid is how a transaction with a number
# holds it (PostgreSQL documentation, view-pg-locks).
_SESSIONS = """
SELECT a.pid, coalesce(a.usename::text, '?'), coalesce(a.application_name, ''),
       coalesce(a.state, '?'), coalesce(left(a.query, 200), ''),
       coalesce(extract(epoch FROM statement_timestamp() - a.xact_start), 0)::float8,
       bool_or(l.locktype = 'transactionid'), current_user::text, a.datid::int8, a.backend_start
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE a.datname = current_database() AND l.granted AND a.pid <> pg_backend_pid()
      AND a.pid <> ALL(%(spared)s) AND a.usesysid IS NOT NULL
      AND (l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock'
           OR l.locktype IN ('relation', 'tuple') AND l.relation >= 16384)
GROUP BY 1, 2, 3, 4, 5, 6, 8, 9, 10 ORDER BY 6 DESC
"""


@dataclass(frozen=True)
class BlockingSession:
    """A session in the database: `name`, its application_name; `seconds`, how old its transaction
    is; `wrote`, it has written; `viewer`, the role that asked; `database` and `started` tell it
    from a later one with its process id."""

    pid: int
    user: str
    name: str
    state: str
    query: str
    seconds: float
    wrote: bool
    viewer: str = ""
    database: int = 0
    started: datetime | None = None

    @property
    def test(self) -> str:
        """The test that opened it, as far as its name tells: `Clone.connect` writes it there."""
        words = self.name.split(" ", 2)
        return words[2] if len(words) == 3 and words[0] == "dbclone" else ""

    def __str__(self) -> str:
        opened = (
            f"was opened by {self.test}"
            if self.test
            else f"calls itself {self.name!r}"
            if self.name
            else "has no name"
        )
        if self.state == "?":
            return (
                f"Session {self.pid} of user {self.user} {opened}. What it does is hidden"
                f" from role {self.viewer!r}; a superuser"
                f' can show it: GRANT pg_read_all_stats TO "{self.viewer}";'
            )
        return (
            f"Session {self.pid} of user {self.user} {opened}, is {self.state} in a transaction"
            f" {self.seconds:.1f} s old, and last ran: {self.query}"
        )


def sessions(control: psycopg.Connection[Any], spared: Iterable[int] = ()) -> list[BlockingSession]:
    """Return the sessions in this database that hold locks on its tables or have written in an open
    transaction.

    Arguments: `spared`, process ids of sessions of our own.
    """
    rows = (
        control.cursor(row_factory=tuple_row)
        .execute(_SESSIONS, {"spared": list(spared)})
        .fetchall()
    )
    return [BlockingSession(*row) for row in rows]


def writers(control: psycopg.Connection[Any], spared: Iterable[int] = ()) -> list[BlockingSession]:
    """Return those that have written something that they may still commit."""
    return [session for session in sessions(control, spared) if session.wrote]


def roll_back_prepared(control: psycopg.Connection[Any]) -> int:
    """Roll back the prepared transactions of this database, which outlive their sessions; return
    how many there were."""
    found = control.cursor(row_factory=tuple_row).execute(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()"
    )
    gids = [gid for (gid,) in found]
    for gid in gids:
        control.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
    return len(gids)


def end(
    control: psycopg.Connection[Any], chosen: Iterable[BlockingSession], patience: float = 5.0
) -> list[BlockingSession]:
    """End sessions and wait until they have gone; return those that would not go in `patience`
    seconds.

    Raises psycopg.errors.InsufficientPrivilege for a session of a role above ours.
    """
    told = {session.pid: session for session in chosen}
    for session in told.values():
        Identity(session.pid, session.database, session.started).end(control)

    def left() -> list[BlockingSession]:
        there = {s.pid for s in sessions(control)} if told else set()
        return [session for pid, session in told.items() if pid in there]

    return wait_while(left, patience, 0.005)


def blocked(name: str, seconds: float, found: list[BlockingSession]) -> ResetBlocked:
    """Return the error that names who is in the way of resetting database `name`."""
    return ResetBlocked(
        f'could not reset "{name}" in {seconds:g} s: '
        + (
            f"session {found[0].pid} is in the way"
            if len(found) == 1
            else f"{len(found)} sessions are in the way"
        ),
        "\n".join(str(session) for session in found) or "It has gone in the meantime.",
        "Close that connection in the test or its fixture (pytest keeps the variables of a"
        " failed test alive, connections"
        ' included), or set on_leak = "terminate".',
    )
