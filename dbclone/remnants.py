"""What keeps a database of ours from being dropped though nobody is in it: prepared transactions, and logical replication."""

from __future__ import annotations

import contextlib
import time

from psycopg import sql

from .clock import monotonic
from .errors import ServerError
from .server import Server
from .sessions import Identity


def roll_back_prepared(server: Server, name: str) -> bool:
    """Roll back the prepared transactions in a database of ours, which outlive their sessions; return whether there were any."""
    prepared = server.fetch("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [name])
    if not prepared:
        return False
    try:
        with contextlib.closing(server.connect(name, "drop")) as connection:
            for (gid,) in prepared:
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
    except ServerError:  # it is closed to everybody
        return False
    return True


def stop_replication(server: Server, name: str, force: bool) -> bool:
    """Remove the subscriptions in a database of ours that is to be dropped, and with `force` end who reads from its logical slots
    (without a reader they are dropped with it); return whether there were any. Publishers are not spoken to."""
    subscriptions = server.fetch(
        "SELECT subname::text FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = %s)", [name]
    )
    if subscriptions:
        closed = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(sql.Identifier(name))  # as a template is
        server.connection.execute(closed)
        with contextlib.closing(server.connect(name, "drop")) as connection:
            for (subscription,) in subscriptions:
                for statement in (
                    "ALTER SUBSCRIPTION {} DISABLE",
                    "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                    "DROP SUBSCRIPTION {}",
                ):
                    connection.execute(sql.SQL(statement).format(sql.Identifier(subscription)))
    readers = (
        "SELECT a.pid, a.datid::int8, a.backend_start FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid"
        " WHERE s.database = %s"
    )
    found, deadline = server.fetch(readers, [name]) if force else [], monotonic() + 10
    for reader in found:
        Identity(*reader).end(server.connection)
    while found and server.fetch(readers, [name]) and monotonic() < deadline:
        time.sleep(0.002)
    return bool(subscriptions or found)
