"""The databases that dbclone makes, and the only statements that create, rename and drop databases.

Nothing is dropped, renamed or closed here unless `marks` says that dbclone made it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import psycopg
from psycopg import sql

from .errors import NotOurs, ServerError
from .marks import LIMIT, Database, Mark, check_name
from .server import Server

# A session without a user is an autovacuum worker, which the server ends by itself. The type of a session of others is hidden
# from a plain role.
_OURS = """
SELECT d.oid::int8, d.datname::text, d.datdba = (SELECT oid FROM pg_roles WHERE rolname = current_user),
       d.datistemplate AND NOT d.datallowconn,
       d.datconnlimit,
       CASE WHEN %(sizes)s AND has_database_privilege(d.oid, 'CONNECT') THEN coalesce(pg_database_size(d.oid), 0) ELSE 0 END,
       (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid AND a.usesysid IS NOT NULL
        AND coalesce(a.backend_type, '') !~ '^logical replication ')::int,
       shobj_description(d.oid, 'pg_database')
FROM pg_database d WHERE d.datname ~ '^dbclone_' AND (%(name)s::text IS NULL OR d.datname = %(name)s) ORDER BY d.datname
"""
_TAKEN = (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation)
# Settings that are lists of identifiers, as pg_dump knows them (variable_is_guc_list_quote in src/bin/pg_dump/dumputils.c).
_LISTS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)


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


def commenting(name: str, mark: Mark) -> sql.Composed:
    """Return the statement that writes a mark."""
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(mark.text()))


def comment(server: Server, name: str, mark: Mark) -> None:
    """Write the mark of a database that this process made or claimed."""
    _run(server, commenting(name, mark))


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


def opening(name: str) -> sql.Composed:
    """Return the statement that opens a database to connections."""
    return sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true").format(sql.Identifier(name))


def close_to_others(server: Server, name: str, own: int = 0, patience: float = 10.0) -> list[tuple[int, str, str]]:
    """Forbid further connections to a database of ours and end the sessions in it; return those that stayed: (pid, user, name).

    Arguments: `own`, the process id of a session that may stay, because it is ours; `patience`, seconds to wait for a session
    that was told to end. One that we may not end is not waited for.
    """
    _run(server, sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
    told: set[int] = set()
    refused: set[int] = set()
    deadline = time.monotonic() + patience
    while True:
        rows = server.fetch(
            "SELECT pid, coalesce(usename::text, ''), coalesce(application_name, '') FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> %s AND usesysid IS NOT NULL",
            [name, own],
        )
        stayed = [(pid, user, application) for pid, user, application in rows]
        if {pid for pid, _, _ in stayed} <= refused or time.monotonic() > deadline:
            return stayed
        for pid in {pid for pid, _, _ in stayed} - told:
            told.add(pid)
            try:
                server.fetch("SELECT pg_terminate_backend(%s)", [pid])
            except psycopg.errors.InsufficientPrivilege:
                refused.add(pid)
        time.sleep(0.002)


def renaming(old: str, new: str) -> sql.Composed:
    """Return the statement that renames a database."""
    check_name(new)
    return sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))


def rename(server: Server, old: str, new: str) -> bool:
    """Rename a database; return False if the new name is taken: then somebody else was first."""
    try:
        _run(server, renaming(old, new))
    except _TAKEN:
        return False
    return True


def swap(server: Server, name: str, aside: str, replacement: str) -> bool:
    """Let `replacement` take the name of a database that steps aside, in one transaction: nobody finds the name missing.

    Returns False if there is no database of that name any more. Raises psycopg.errors.ObjectInUse if somebody is connected to it.
    """
    try:
        with server.connection.transaction():
            _run(server, renaming(name, aside))
            _run(server, renaming(replacement, name))
    except psycopg.errors.InvalidCatalogName:
        return False
    return True


def check_ours(server: Server, database: Database) -> None:
    """Raise NotOurs unless dbclone can prove that it made this database."""
    if problem := database.problem(server.facts.system):
        raise NotOurs(
            f"database {database.name!r} on {server.where} is left alone: {problem}",
            "dbclone drops only what carries its own mark for this server and belongs to its own role.",
            "Drop it by hand if you know what it is.",
        )


def drop(server: Server, database: Database, force: bool = False) -> None:
    """Drop a database that dbclone can prove it made.

    Arguments: `database`, as `listed` returned it: it is looked up again on the same connection just before; `force`, end the
    sessions in it first, for a database of our own run. One that is gone already is no error. Raises NotOurs, psycopg.Error.
    """
    now = find(server, database.name)
    if now is None or now.oid != database.oid:
        return
    check_ours(server, now)
    name = sql.Identifier(now.name)
    # -2 is how the server marks a database whose DROP was interrupted: ALTER would end our connection, DROP works.
    is_template = now.sealed or (now.mark is not None and now.mark.kind == "template")  # also one that somebody has opened
    if is_template and now.limit != -2:
        _run(server, sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(name))
    statement = sql.SQL("DROP DATABASE IF EXISTS {} {}").format(name, sql.SQL("WITH (FORCE)" if force and now.limit != -2 else ""))
    try:
        _run(server, statement)
    except psycopg.errors.ObjectInUse:
        if not any([roll_back_prepared(server, now.name), stop_replication(server, now.name, force)]):
            raise
        _run(server, statement)


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
        _run(server, opening(name))  # a template is closed
        with contextlib.closing(server.connect(name, "drop")) as connection:
            for (subscription,) in subscriptions:
                for statement in (
                    "ALTER SUBSCRIPTION {} DISABLE",
                    "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                    "DROP SUBSCRIPTION {}",
                ):
                    connection.execute(sql.SQL(statement).format(sql.Identifier(subscription)))
    readers = "SELECT active_pid FROM pg_replication_slots WHERE database = %s AND active"
    found, deadline = server.fetch(readers, [name]) if force else [], time.monotonic() + 10
    for (pid,) in found:
        server.fetch("SELECT pg_terminate_backend(%s)", [pid])
    while found and server.fetch(readers, [name]) and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(subscriptions or found)


def carry_over(server: Server, source: str, target: str) -> None:
    """Give `target` the database-level settings and grants of `source`, which CREATE DATABASE … TEMPLATE does not copy
    (PostgreSQL documentation, manage-ag-templatedbs)."""
    rows = server.fetch(
        "SELECT r.rolname::text, s.setconfig, d.datacl IS NOT NULL, d.datconnlimit FROM pg_database d"
        " LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = %s",
        [source],
    )
    for role, pairs, _, _ in rows:
        for pair in pairs or ():
            variable, _, value = pair.partition("=")
            _set(server, target, role, variable, value)
    name = sql.Identifier(target)
    if rows and rows[0][2]:
        grants = server.fetch(
            "SELECT CASE WHEN grantee = 0 THEN NULL ELSE grantee::regrole::text END, privilege_type, is_grantable, r.rolname::text"
            " FROM pg_database d, aclexplode(d.datacl) LEFT JOIN pg_roles r ON r.oid = grantee WHERE d.datname = %s",
            [source],
        )
        with server.connection.transaction():
            _run(server, sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, CURRENT_USER").format(name))
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


def _set(server: Server, database: str, role: str | None, variable: str, value: str) -> None:
    """Store a setting of a database, or of a role in it, exactly as it is stored elsewhere."""
    where = (
        sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), sql.Identifier(database))
        if role
        else sql.SQL("ALTER DATABASE {}").format(sql.Identifier(database))
    )
    shown = sql.SQL(".").join(map(sql.Identifier, variable.split(".")))
    if variable.lower() not in _LISTS:
        # Never applied to our own session: it may be a role, or name what only that database has.
        _run(server, sql.SQL("{} SET {} TO {}").format(where, shown, sql.Literal(value)))
        return
    with server.connection.transaction():  # a literal would be one element; FROM CURRENT takes the list
        server.connection.execute("SELECT set_config(%s, %s, true)", [variable, value])
        _run(server, sql.SQL("{} SET {} FROM CURRENT").format(where, shown))
