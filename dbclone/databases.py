"""The databases that dbclone makes, and the only statements that create, rename and drop databases.

Nothing is dropped, renamed or closed here unless `marks` says that dbclone made it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import psycopg
from psycopg import sql

from .errors import NotOurs
from .marks import LIMIT, Database, Mark, check_name
from .server import Server

_OURS = """
SELECT d.oid::int8, d.datname::text, d.datdba = (SELECT oid FROM pg_roles WHERE rolname = current_user), d.datistemplate AND NOT d.datallowconn,
       d.datconnlimit, CASE WHEN %(sizes)s THEN pg_database_size(d.oid) ELSE 0 END,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid)::int, shobj_description(d.oid, 'pg_database')
FROM pg_database d WHERE d.datname ~ '^dbclone_' AND (%(name)s::text IS NULL OR d.datname = %(name)s) ORDER BY d.datname
"""


def listed(server: Server, name: str | None = None, sizes: bool = False) -> list[Database]:
    """Return the databases on the server whose names begin as ours do, or the one called `name`; with `sizes`, their bytes too."""
    rows = server.fetch(_OURS, {"sizes": sizes, "name": name})
    return [
        Database(oid, found, own, sealed, limit, size, sessions, Mark.read(comment), comment)
        for oid, found, own, sealed, limit, size, sessions, comment in rows
    ]


def find(server: Server, name: str) -> Database | None:
    """Return the database called `name`, or None."""
    return next(iter(listed(server, name)), None)


def _run(server: Server, statement: sql.Composed) -> None:
    server.connection.execute(statement)


def create(server: Server, name: str, template: str, mark: Mark, options: dict[str, str | bool] | None = None) -> None:
    """Create database `name` as a copy of `template`, marked. The caller holds the lease of `name` already.

    Arguments: `options`, further options of CREATE DATABASE: text values are quoted, booleans are keywords; STRATEGY is a keyword
    too. Raises psycopg.Error as the server gives it.
    """
    check_name(name)
    parts = [
        sql.SQL("CREATE DATABASE {} WITH TEMPLATE {} CONNECTION LIMIT {}").format(
            sql.Identifier(name), sql.Identifier(template), LIMIT
        )
    ]
    for option, value in (options or {}).items():
        assert option in ("ENCODING", "LOCALE", "STRATEGY", "ALLOW_CONNECTIONS")
        shown = sql.SQL("true" if value else "false") if isinstance(value, bool) else sql.Literal(value)
        parts.append(sql.SQL("{} {}").format(sql.SQL(option), shown))
    _run(server, sql.SQL(" ").join(parts))
    comment(server, name, mark)


def comment(server: Server, name: str, mark: Mark) -> None:
    """Write the mark of a database that this process made or claimed."""
    _run(server, sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(mark.text())))


def touch(server: Server, database: Database) -> None:
    """Note that a template is in use now; not worth waiting for, nor failing for."""
    if database.mark is None or time.time() - database.mark.used < 3600 or not database.own:
        return
    with contextlib.suppress(psycopg.Error):
        with server.connection.transaction():
            server.connection.execute("SET LOCAL lock_timeout = '100ms'")
            comment(server, database.name, replace(database.mark, used=round(time.time(), 3)))


def seal(server: Server, name: str, mark: Mark) -> None:
    """Close a database to everybody and make it a template, with its final mark, in one transaction."""
    with server.connection.transaction():
        _run(server, sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true").format(sql.Identifier(name)))
        comment(server, name, mark)


def close_to_others(server: Server, name: str) -> list[tuple[int, str, str]]:
    """Forbid further connections to a database of ours and end the sessions in it; return those that stayed: (pid, user, name)."""
    _run(server, sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
    stayed: list[tuple[int, str, str]] = []
    for attempt in range(50):
        rows = server.fetch(
            "SELECT pid, usename::text, application_name, backend_start FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type <> 'autovacuum worker'",
            [name],
        )
        stayed = [(pid, user or "", application) for pid, user, application, _ in rows]
        if not rows:
            break
        if attempt % 10 == 0:
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                server.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        time.sleep(0.01)
    return stayed


def rename(server: Server, old: str, new: str) -> bool:
    """Rename a database; return False if the new name is taken: then somebody else was first."""
    check_name(new)
    try:
        _run(server, sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return False
    return True


def swap(server: Server, name: str, aside: str, replacement: str) -> None:
    """Let `replacement` take the name of a database that steps aside, in one transaction: nobody finds the name missing."""
    check_name(aside)
    with server.connection.transaction():
        for old, new in ((name, aside), (replacement, name)):
            _run(server, sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))


def claim(server: Server, spare: Database, name: str, mark: Mark) -> bool:
    """Make a warm clone the database `name`, open and with its owner's mark; return False if somebody else took it first."""
    try:
        if not rename(server, spare.name, name):
            return False
    except (psycopg.errors.InvalidCatalogName, psycopg.errors.ObjectInUse):
        return False
    with server.connection.transaction():
        _run(server, sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(sql.Identifier(name)))
        comment(server, name, mark)
    return True


def drop(server: Server, database: Database, force: bool = False) -> None:
    """Drop a database that dbclone can prove it made.

    Arguments: `database`, as `listed` returned it: it is looked up again on the same connection just before; `force`, end the
    sessions in it first, for a database of our own run. One that is gone already is no error. Raises NotOurs, psycopg.Error.
    """
    now = find(server, database.name)
    if now is None or now.oid != database.oid:
        return
    if problem := now.problem(server.facts.system):
        raise NotOurs(
            f"database {now.name!r} on {server.where} is left alone: {problem}",
            "dbclone drops only what carries its own mark for this server and belongs to its own role.",
            "Drop it by hand if you know what it is.",
        )
    name = sql.Identifier(now.name)
    # -2 is how the server marks a database whose DROP was interrupted: ALTER would end our connection, DROP works.
    if now.sealed and now.limit != -2:
        _run(server, sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(name))
    _run(
        server,
        sql.SQL("DROP DATABASE IF EXISTS {} {}").format(name, sql.SQL("WITH (FORCE)" if force and now.limit != -2 else "")),
    )


def carry_over(server: Server, source: str, target: str) -> None:
    """Give `target` the database-level settings and grants of `source`, which CREATE DATABASE … TEMPLATE does not copy
    (PostgreSQL documentation, manage-ag-templatedbs)."""
    rows = server.fetch(
        "SELECT r.rolname::text, s.setconfig, d.datacl IS NOT NULL, d.datconnlimit FROM pg_database d"
        " LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = %s",
        [source],
    )
    name = sql.Identifier(target)
    for role, pairs, _, _ in rows:
        for pair in pairs or ():
            variable, _, value = pair.partition("=")
            where = (
                sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), name)
                if role
                else sql.SQL("ALTER DATABASE {}").format(name)
            )
            # FROM CURRENT takes lists such as search_path exactly as they are stored.
            with server.connection.transaction():
                server.connection.execute("SELECT set_config(%s, %s, true)", [variable, value])
                _run(
                    server,
                    sql.SQL("{} SET {} FROM CURRENT").format(where, sql.SQL(".").join(map(sql.Identifier, variable.split(".")))),
                )
    if rows and rows[0][2]:
        grants = server.fetch(
            "SELECT CASE WHEN grantee = 0 THEN NULL ELSE grantee::regrole::text END, privilege_type, is_grantable, r.rolname::text"
            " FROM pg_database d, aclexplode(d.datacl) LEFT JOIN pg_roles r ON r.oid = grantee WHERE d.datname = %s",
            [source],
        )
        with server.connection.transaction():
            _run(server, sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
            for grantee, privilege, grantable, role in grants:
                _run(
                    server,
                    sql.SQL("GRANT {} ON DATABASE {} TO {} {}").format(
                        sql.SQL(privilege),
                        name,
                        sql.SQL("PUBLIC") if grantee is None else sql.Identifier(role),
                        sql.SQL("WITH GRANT OPTION" if grantable and grantee is not None else ""),
                    ),
                )
    if rows and rows[0][3] not in (LIMIT, -1):
        _run(server, sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, sql.Literal(rows[0][3])))
