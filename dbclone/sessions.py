"""A session of the server, told from all others, and the only statement that ends one.

Servers give process ids again, so a process id alone may be somebody else's by the time a session is ended.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import tuple_row

# The start of another role's session is hidden from a plain role, which may not end that session either.
_END = (
    "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
    " WHERE pid = %s AND datid = %s AND backend_start IS NOT DISTINCT FROM %s"
)


class Identity(NamedTuple):
    """Which session: its process id, the oid of the database that it is in, and when it began (None: hidden from us)."""

    pid: int
    database: int
    started: datetime | None

    @classmethod
    def of(cls, connection: psycopg.Connection[Any]) -> Identity:
        """Return the identity of a connection's own session."""
        query = "SELECT pid, datid::int8, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
        row = connection.cursor(row_factory=tuple_row).execute(query).fetchone()
        assert row is not None
        return cls(*row)

    def end(self, connection: psycopg.Connection[Any]) -> bool:
        """Tell this session to end, over another connection, unless it has gone already; return whether it was there.

        Raises psycopg.errors.InsufficientPrivilege for a session of a role above ours.
        """
        return bool(connection.cursor(row_factory=tuple_row).execute(_END, self).fetchall())
