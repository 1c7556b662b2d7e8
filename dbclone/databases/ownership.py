"""The licence to destroy: the one guard before every statement that drops, renames, closes or opens
a database, ends the sessions in it, or empties its tables.

It looks the database up on the connection that is about to act, at the last moment, and demands
everything at once: a name of our shape that is not the server's nor the one we are connected to,
our own role as its owner (for superusers too), and our mark for this very database: this cluster,
its oid, and the name that we gave it. In place of the mark, which a test may write over, it takes
one thing only: that this process itself made the database with this oid. There is no way round it.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..errors import NotOwned
from ..server.server import Server
from .naming import Database, Mark

# A session without a user is an autovacuum worker, which the server ends by itself. The type of a
# session of others is hidden from a plain role.
_COLUMNS = """
SELECT d.oid::int8, d.datname::text,
       d.datdba = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = %(role)s),
       d.datistemplate AND NOT d.datallowconn,
       d.datconnlimit,
       CASE WHEN %(sizes)s AND pg_catalog.has_database_privilege(d.oid, 'CONNECT')
            THEN coalesce(pg_catalog.pg_database_size(d.oid), 0) ELSE 0 END,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity a
         WHERE a.datid = d.oid AND a.usesysid IS NOT NULL
         AND coalesce(a.backend_type, '') !~ '^logical replication ')::int,
       pg_catalog.shobj_description(d.oid, 'pg_database'),
"""
_FROM = " FROM pg_catalog.pg_database d WHERE "
_LISTED = f"""{_COLUMNS} ''{_FROM} d.datname ~ '^dbclone_'
  AND (%(name)s::text IS NULL OR d.datname = %(name)s) ORDER BY d.datname"""
_NAMED = f"{_COLUMNS} ''{_FROM} d.datname = %(name)s"
_SYSTEM = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system())"
_HERE = f"{_COLUMNS} {_SYSTEM}{_FROM} d.datname = pg_catalog.current_database()"


def _database(row: tuple[Any, ...]) -> Database:
    oid, name, own, sealed, limit, size, sessions, comment, _ = row
    return Database(oid, name, own, sealed, limit, size, sessions, Mark.read(comment), comment)


def list_databases(server: Server, name: str | None = None, sizes: bool = False) -> list[Database]:
    """Return the databases on the server whose names begin as ours do, or the one called `name`;
    with `sizes`, their bytes too."""
    return [
        _database(row)
        for row in server.fetch(_LISTED, {"sizes": sizes, "name": name, "role": server.facts.role})
    ]


def find(server: Server, name: str) -> Database | None:
    """Return the database called `name`, or None."""
    return next(iter(list_databases(server, name)), None)


def verify_owned(server: Server, name: str, made: int = 0) -> Database | None:
    """Return database `name` as it is now, if dbclone can prove that it made it; None if there is
    none.

    Arguments: `made`, the oid of a database that this process itself made on this server, if it
    did. Raises NotOwned.
    """
    rows = server.fetch(_NAMED, {"sizes": False, "name": name, "role": server.facts.role})
    if not rows:
        return None
    found = _database(rows[0])
    _demand(server, found, made)
    return found


def verify_connected(
    connection: psycopg.Connection[Any], server: Server, name: str, made: int = 0
) -> None:
    """Raise NotOwned unless `connection` is in database `name` of this very server, and dbclone can
    prove that it made it.

    Whatever stands between, a pooler or a name that means another machine by now: this asks at the
    far end.
    """
    row = (
        connection.cursor(row_factory=tuple_row)
        .execute(_HERE.encode(), {"sizes": False, "role": server.facts.role})
        .fetchone()
    )
    assert row is not None
    found, system = _database(row), row[-1]
    if system != server.facts.system:
        raise _refused(server, found, "the connection leads to another cluster")
    if found.name != name:
        raise _refused(server, found, f"the connection was meant to lead into {name!r}")
    _demand(server, found, made)


def _demand(server: Server, found: Database, made: int) -> None:
    problem = found.problem(server.facts.system, made)
    if not problem and found.name == server.connection.info.dbname:
        problem = "it is the one that we are connected to"
    if problem:
        raise _refused(server, found, problem)


def _refused(server: Server, found: Database, problem: str) -> NotOwned:
    return NotOwned(
        f"database {found.name!r} on {server.where} is left alone: {problem}",
        "dbclone drops and changes only what carries its own mark for this very database and"
        " belongs to its own role.",
        "Whoever made it knows what it is.",
    )
