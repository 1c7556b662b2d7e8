"""Sessions of the server: what ours are called, how one is told from all others, and the only
statement that ends one.

Servers give process ids again, so a process id alone may be somebody else's by the time a session
is ended.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import tuple_row

# The start of another role's session is hidden from a plain role,
# which may not end that session either.
_END = (
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
    " WHERE pid = %s AND datid = %s AND backend_start IS NOT DISTINCT FROM %s"
)


class Identity(NamedTuple):
    """Which session: its process id, the oid of the database that it is in, and when it began
    (None: hidden from us)."""

    pid: int
    database: int
    started: datetime | None

    @classmethod
    def of(cls, connection: psycopg.Connection[Any]) -> Identity:
        """Return the identity of a connection's own session."""
        query = (
            "SELECT pid, datid::int8, backend_start FROM pg_catalog.pg_stat_activity"
            " WHERE pid = pg_catalog.pg_backend_pid()"
        )
        row = connection.cursor(row_factory=tuple_row).execute(query).fetchone()
        assert row is not None
        return cls(*row)

    def end(self, connection: psycopg.Connection[Any]) -> bool:
        """Tell this session to end, over another connection, unless it has gone already; return
        whether it was there.

        Raises psycopg.errors.InsufficientPrivilege for a session of a role above ours.
        """
        return bool(connection.cursor(row_factory=tuple_row).execute(_END, self).fetchall())


_HOLDERS = """
SELECT DISTINCT a.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, '?'),
       coalesce(a.state, '?'),
       coalesce(extract(epoch FROM clock_timestamp() - a.state_change)::int, 0)
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid() AND (
      l.locktype = 'object' AND l.classid = 'pg_catalog.pg_database'::regclass
      OR l.locktype = 'relation' AND l.mode <> 'AccessShareLock'
         AND l.relation IN ('pg_catalog.pg_database'::regclass,
                            'pg_catalog.pg_shdescription'::regclass))
"""


def holders(server: Any) -> list[str]:
    """Return in words who has locks on the server's databases, for which CREATE, ALTER and DROP
    DATABASE wait; never raises."""
    try:
        rows = server.fetch(_HOLDERS)
    except psycopg.Error:
        return []
    return [
        f"Server process {pid} of {user} ({name or 'unnamed'}) has a lock, {state} for {age} s."
        for pid, name, user, state, age in rows
    ]


def application_name(worker: str, test: str) -> str:
    """Return the name that sessions opened for a test carry, 63 bytes at most: the end of a test's
    id says more than its start.

    What is not printable ASCII is a question mark, as it would be for the server; libpq's variable
    could not even hold a NUL.
    """
    worker, test = (re.sub(r"[^ -~]", "?", text) for text in (worker[:63], test))
    room = 63 - len(f"dbclone {worker} ")
    if len(test) > room:
        test = f"?{test[-(room - 1) :]}" if room > 1 else ""
    return f"dbclone {worker} {test}"[:63]


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Give a name to every session that libpq opens in this process during the block (PostgreSQL
    documentation, libpq-envars)."""
    before = os.environ.get("PGAPPNAME")
    if name:
        os.environ["PGAPPNAME"] = name
    try:
        yield
    finally:
        if name and before is None:
            os.environ.pop("PGAPPNAME", None)
        elif name and before is not None:
            os.environ["PGAPPNAME"] = before
