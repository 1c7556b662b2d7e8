"""The databases that dbclone makes, and the only statements that create, rename and drop databases.

Every statement here that changes a database which exists already asks `licence` first, by the name
that the statement has.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import psycopg
from psycopg import sql

from ..errors import NotOwned, PermissionMissing, ServerError
from ..process.clock import monotonic, wait_while, wall
from ..server.connect import quoted
from ..server.connection import Interruptible
from ..server.server import Server
from ..server.sessions import Identity, holders
from . import ownership
from .naming import NO_LIMIT, Database, Mark, check_name, limit_for
from .ownership import verify_owned

# What there is, for whoever decides what to do about it
list_databases, find = ownership.list_databases, ownership.find

# Seconds for a session that we may not end to end by itself: its client has just closed it.
_LEAVING = 1.0
_MARGIN = 30.0  # seconds by which the server's own limit comes before ours
_PATIENCE = 60.0  # seconds that a DROP may take unless somebody says otherwise
_TAKEN = (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation)
# Settings that are lists of identifiers, as pg_dump knows them
# (variable_is_guc_list_quote in src/bin/pg_dump/dumputils.c).
_LISTS = (
    "local_preload_libraries", "search_path", "session_preload_libraries",
    "shared_preload_libraries", "temp_tablespaces", "unix_socket_directories",
)  # fmt: skip


def _run(server: Server, statement: sql.Composed) -> None:
    """Run a statement that may take as long as a database is large. The server itself bounds it:
    see `connect.open_session`."""
    connection = server.connection
    with (
        connection.patient(server.settings.build_timeout + _MARGIN)
        if isinstance(connection, Interruptible)
        else nullcontext()
    ):
        connection.execute(statement)


def _about(text: str, *names: str) -> sql.Composed:
    """Return a statement about databases, or what is in one, by name."""
    return sql.SQL(text).format(*map(sql.Identifier, names))


def create(
    server: Server,
    name: str,
    template: str,
    mark: Mark,
    options: dict[str, str | bool] | None = None,
) -> Mark:
    """Create database `name` as a copy of `template`, and bind `mark` to it; return the bound mark,
    which has its oid.

    The caller holds the lease of `name` already. Arguments: `options`, further options of CREATE
    DATABASE: text values are quoted, booleans are keywords; STRATEGY is a keyword too. Raises
    psycopg.Error as the server gives it, and NotOwned if another database has got the name since.
    """
    check_name(name)
    parts = [
        sql.SQL("CREATE DATABASE {} WITH TEMPLATE {} CONNECTION LIMIT {}").format(
            sql.Identifier(name), sql.Identifier(template), limit_for(name, server.facts.system)
        )
    ]
    for option, value in (options or {}).items():
        assert option in ("ENCODING", "LOCALE", "STRATEGY", "ALLOW_CONNECTIONS")
        shown = (
            sql.SQL("true" if value else "false") if isinstance(value, bool) else sql.Literal(value)
        )
        parts.append(sql.SQL("{} {}").format(sql.SQL(option), shown))
    _run(server, sql.SQL(" ").join(parts))
    made = verify_owned(server, name)
    if made is None:
        raise psycopg.errors.InvalidCatalogName(
            f'database "{name}" was dropped as soon as it was made'
        )
    mark = mark.bound(name, made.oid)
    comment(server, name, mark)
    return mark


def commenting(name: str, mark: Mark) -> sql.Composed:
    """Return the statement that writes a mark."""
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(
        sql.Identifier(name), sql.Literal(mark.text())
    )


def comment(server: Server, name: str, mark: Mark) -> None:
    """Write the mark of a database that this process has just made, or has a licence for: whoever
    writes it, gives one."""
    _run(server, commenting(name, mark))


def touch(server: Server, database: Database) -> None:
    """Note that a template is in use now; not worth waiting for, nor failing for."""
    if database.mark is None or wall() - database.mark.used < 3600 or not database.own:
        return
    with contextlib.suppress(psycopg.Error, NotOwned):
        with server.connection.transaction():
            server.connection.execute("SET LOCAL lock_timeout = '100ms'")
            now = verify_owned(server, database.name)
            if now is None or now.oid != database.oid:
                return
            comment(server, database.name, replace(database.mark, used=round(wall(), 3)))


def seal(server: Server, name: str, mark: Mark) -> None:
    """Close a database to everybody and make it a template, with its final mark, in one
    transaction. Raises NotOwned."""
    with server.connection.transaction():
        found = verify_owned(server, name)
        closed = "ALTER DATABASE {} WITH ALLOW_CONNECTIONS false IS_TEMPLATE true"
        _run(server, _about(closed, name))
        comment(server, name, mark.bound(name, found.oid if found is not None else 0))


def opening(name: str) -> sql.Composed:
    """Return the statement that opens a database to connections."""
    return _about("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true", name)


def close_to_others(
    server: Server, name: str, own: int = 0, patience: float = 10.0, made: int = 0
) -> list[tuple[int, str, str]]:
    """Forbid further connections to a database of ours and end the sessions in it; return those
    that stayed: (pid, user, name).

    Arguments: `own`, the process id of a session that may stay, because it is ours; `patience`,
    seconds to wait for a session that was told to end (one that we may not end is waited for one
    second); `made`, as for `verify_owned`. Raises NotOwned.
    """
    verify_owned(server, name, made)
    _run(server, _about("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false", name))
    told: set[int] = set()
    refused: set[int] = set()
    began = monotonic()
    while True:
        rows = server.fetch(
            "SELECT pid, coalesce(usename::text, ''), coalesce(application_name, ''), datid::int8,"
            " backend_start FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
            " AND usesysid IS NOT NULL",
            [name, own],
        )
        stayed = [(pid, user, application) for pid, user, application, _, _ in rows]
        if not stayed or monotonic() - began > (
            min(_LEAVING, patience) if {row[0] for row in stayed} <= refused else patience
        ):
            return stayed
        for session in [
            Identity(pid, oid, started) for pid, _, _, oid, started in rows if pid not in told
        ]:
            told.add(session.pid)
            try:
                session.end(server.connection)
            except psycopg.errors.InsufficientPrivilege:
                refused.add(session.pid)
        time.sleep(0.002)


def renaming(old: str, new: str) -> sql.Composed:
    """Return the statement that renames a database."""
    check_name(new)
    return _about("ALTER DATABASE {} RENAME TO {}", old, new)


def _rename(server: Server, old: str, new: str) -> None:
    """Rename a database and bind its mark to the new name, in the caller's transaction. Raises
    NotOwned, psycopg.Error."""
    found = verify_owned(server, old)
    _run(server, renaming(old, new))
    if found is not None and found.mark is not None:
        _run(server, commenting(new, found.mark.bound(new, found.oid)))


def rename(server: Server, old: str, new: str) -> bool:
    """Rename a database; return False if the new name is taken: then somebody else was first.
    Raises NotOwned."""
    check_name(new)
    try:
        with server.connection.transaction():
            _rename(server, old, new)
    except _TAKEN:
        return False
    return True


def swap(server: Server, name: str, aside: str, replacement: str) -> bool:
    """Let `replacement` take the name of a database that steps aside, in one transaction: nobody
    finds the name missing.

    Returns False if there is no database of that name any more. Raises NotOwned, and
    psycopg.errors.ObjectInUse if somebody is connected to it.
    """
    try:
        with server.connection.transaction():
            verify_owned(server, replacement)
            _rename(server, name, aside)
            _rename(server, replacement, name)
    except psycopg.errors.InvalidCatalogName:
        return False
    return True


def keep(server: Server, name: str, kept: str, mark: Mark) -> bool:
    """Give a database of our own run the name `kept` and the mark that goes with it; return False
    if that name is taken.

    Sessions in it are ended. Raises psycopg.errors.ObjectInUse if one of them may not be; then
    everything is as it was. Raises NotOwned.
    """
    stayed = close_to_others(server, name)
    try:
        if stayed:
            pid, user, _ = stayed[0]
            raise psycopg.errors.ObjectInUse(
                f"session {pid} of role {user} is in database {name} and may not be ended"
            )
        with server.connection.transaction():
            found = verify_owned(server, name)
            _run(server, renaming(name, kept))
            comment(server, kept, mark.bound(kept, found.oid if found is not None else 0))
            _run(server, opening(kept))
    except _TAKEN:
        _run(server, opening(name))
        return False
    except psycopg.Error:
        _run(server, opening(name))
        raise
    return True


def drop(
    server: Server, database: Database, force: bool = False, patience: float = _PATIENCE
) -> None:
    """Drop a database that dbclone can prove it made.

    Arguments: `database`, as `list_databases` returned it: it is looked up again on the same
    connection just before; `force`, end the sessions in it first, for a database of our own run;
    `patience`, seconds that each statement may take. One that is gone already is no error. Raises
    NotOwned; psycopg.Error, the text of which names the sessions that we may not end; ServerError
    if the server has taken too long, which names who was in the way. What was begun then can be
    finished by another drop.
    """
    now = verify_owned(server, database.name)
    if now is None or now.oid != database.oid:
        return
    with _within(server, now.name, patience):
        _drop(server, now, force)


def _drop(server: Server, now: Database, force: bool) -> None:
    name = sql.Identifier(now.name)
    # -2 is how the server marks a database whose DROP was interrupted: ALTER would end our
    # connection, DROP works. A template is one also if somebody has opened it.
    is_template = now.sealed or (now.mark is not None and now.mark.kind == "template")
    if is_template and now.limit != -2:
        _run(server, sql.SQL("ALTER DATABASE {} WITH IS_TEMPLATE false").format(name))
    statement = sql.SQL("DROP DATABASE IF EXISTS {} {}").format(
        name, sql.SQL("WITH (FORCE)" if force and now.limit != -2 else "")
    )
    try:
        _run(server, statement)
    except psycopg.errors.ObjectInUse as error:
        ended = roll_back_prepared(server, now.name)
        if not (stop_replication(server, now.name, force) or ended):
            raise type(error)(f"{str(error).strip()}{to_end(server, now.name)}") from None
        _run(server, statement)
    except psycopg.errors.InsufficientPrivilege as error:
        if not (force and _is_left(server, now.name)):
            raise type(error)(f"{str(error).strip()}{to_end(server, now.name)}") from None
        _run(server, statement)


def _is_left(server: Server, name: str) -> bool:
    """Return whether nobody is connected to a database any more, waiting a moment for who is about
    to go."""
    query = "SELECT FROM pg_stat_activity WHERE datname = %s AND usesysid IS NOT NULL"
    return not wait_while(lambda: server.fetch(query, [name]), _LEAVING, 0.002)


@contextlib.contextmanager
def temporary_database(server: Server, name: str) -> Iterator[None]:
    """Hold the lease of a database that the block makes for itself, and drop it at the end, whoever
    is in it."""
    server.leases.acquire(name)
    try:
        yield
    finally:
        if not server.connection.closed:
            if (database := find(server, name)) is not None:
                drop(server, database, force=True)
            server.leases.release(name)


@contextlib.contextmanager
def _within(server: Server, name: str, patience: float) -> Iterator[None]:
    """Let each statement of the block, which drops database `name`, take so many seconds at most.
    Raises ServerError.

    Before a DROP DATABASE is done, every process of the server has to take note
    (src/backend/storage/ipc/procsignal.c, "ProcSignalBarrier"): one that is stopped, in whatever
    database, keeps it waiting for ever. After five seconds the server says which one that is, to
    whoever listens to messages of its log.
    """
    connection, said, started = server.connection, list[str](), monotonic()

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if "ProcSignalBarrier" in (diagnostic.message_primary or ""):
            said.append(str(diagnostic.message_primary))

    connection.add_notice_handler(note)
    settings = "SET statement_timeout = {}; SET client_min_messages = log"
    connection.execute(sql.SQL(settings).format(max(1, round(patience * 1000))))
    try:
        yield
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable) as error:
        if monotonic() - started < patience * 0.9:
            raise  # somebody cancelled it
        raise ServerError(
            f"database {name!r} on {server.where} could not be dropped within {patience:.0f} s",
            "\n".join([str(error).strip(), *(said[-1:] or holders(server))]),
            "Let that process go on (kill -CONT), or end it; then what is left is dropped"
            " by: python -m dbclone prune",
        ) from None
    finally:
        connection.remove_notice_handler(note)
        if not connection.closed:
            connection.execute("RESET statement_timeout; RESET client_min_messages")


def carry_over(server: Server, source: str, target: str) -> None:
    """Give `target` the database-level settings and grants of `source`, which CREATE DATABASE …
    TEMPLATE does not copy (PostgreSQL documentation, manage-ag-templatedbs)."""
    rows = server.fetch(
        "SELECT r.rolname::text, s.setconfig, d.datacl IS NOT NULL, d.datconnlimit"
        " FROM pg_database d LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid"
        " LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = %s",
        [source],
    )
    if any(pairs or acl or -1 < limit < NO_LIMIT for _, pairs, acl, limit in rows):
        verify_owned(server, target)
    for role, pairs, _, _ in rows:
        for pair in pairs or ():
            variable, _, value = pair.partition("=")
            _set(server, target, role, variable, value)
    name = sql.Identifier(target)
    if rows and rows[0][2]:
        grants = server.fetch(
            "SELECT CASE WHEN grantee = 0 THEN NULL ELSE grantee::regrole::text END,"
            " privilege_type, is_grantable, r.rolname::text FROM pg_database d,"
            " aclexplode(d.datacl) LEFT JOIN pg_roles r ON r.oid = grantee WHERE d.datname = %s",
            [source],
        )
        with server.connection.transaction():
            _run(
                server, sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, CURRENT_USER").format(name)
            )
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
    if rows and -1 < rows[0][3] < NO_LIMIT:
        _run(
            server,
            sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, sql.Literal(rows[0][3])),
        )


def _set(server: Server, database: str, role: str | None, variable: str, value: str) -> None:
    """Store a setting of a database, or of a role in it, exactly as it is stored elsewhere."""
    where = (
        _about("ALTER ROLE {} IN DATABASE {}", role, database)
        if role
        else _about("ALTER DATABASE {}", database)
    )
    shown = sql.SQL(".").join(map(sql.Identifier, variable.split(".")))
    if variable.lower() not in _LISTS:
        # Never applied to our own session: it may be a role, or name what only that database has.
        _run(server, sql.SQL("{} SET {} TO {}").format(where, shown, sql.Literal(value)))
        return
    # A literal would be one element; FROM CURRENT takes the list
    with server.connection.transaction():
        server.connection.execute("SELECT set_config(%s, %s, true)", [variable, value])
        _run(server, sql.SQL("{} SET {} FROM CURRENT").format(where, shown))


def roll_back_prepared(server: Server, name: str) -> bool:
    """Roll back the prepared transactions in a database of ours, which outlive their sessions;
    return whether there were any."""
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
    """Remove the subscriptions in a database of ours that is to be dropped, and with `force` end
    who reads from its logical slots (without a reader they are dropped with it); return whether
    there were any. Publishers are not spoken to."""
    subscriptions = server.fetch(
        "SELECT subname::text FROM pg_subscription WHERE subdbid = (SELECT oid"
        " FROM pg_database WHERE datname = %s)",
        [name],
    )
    if subscriptions:
        server.connection.execute(opening(name))  # it may be closed, as a template is
        with contextlib.closing(server.connect(name, "drop")) as connection:
            for (subscription,) in subscriptions:
                for statement in (
                    "ALTER SUBSCRIPTION {} DISABLE",
                    "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                    "DROP SUBSCRIPTION {}",
                ):
                    connection.execute(_about(statement, subscription))
    readers = (
        "SELECT a.pid, a.datid::int8, a.backend_start FROM pg_replication_slots s"
        " JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.database = %s"
    )
    found = server.fetch(readers, [name]) if force else []
    for reader in found:
        Identity(*reader).end(server.connection)
    if found:
        wait_while(lambda: server.fetch(readers, [name]), 10, 0.002)
    return bool(subscriptions or found)


def to_create(server: Server, template: str, error: psycopg.Error) -> PermissionMissing:
    """Return the error for a CREATE DATABASE … TEMPLATE that the server has refused."""
    role = quoted(server.facts.role)
    ((may,),) = server.fetch(
        "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
    )
    if not may:
        return PermissionMissing(
            f"role {server.facts.role!r} may not create databases on {server.where} any more",
            str(error).strip(),
            f"Run as a superuser: ALTER ROLE {role} CREATEDB;",
        )
    return PermissionMissing(
        f'role {server.facts.role!r} may not copy "{template}"',
        f"{str(error).strip()}\nOnly its owner and superusers may copy a database that is no"
        f" template.",
        f"Run as a superuser: ALTER DATABASE {quoted(template)} OWNER TO {role};",
    )


def to_end(server: Server, name: str) -> str:
    """Return who is connected to a database and may not be sent away by us, and what would allow
    it: further lines of an error."""
    rows = server.fetch(
        "SELECT a.pid, a.usename::text, coalesce(a.application_name, ''), r.rolsuper"
        " FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = %s"
        " AND NOT pg_has_role(r.oid, 'USAGE') ORDER BY 1",
        [name],
    )
    if not rows:
        return ""
    ours = quoted(server.facts.role)
    lines = [
        f"\nSession {pid} of role {quoted(role)} calls itself {application!r}."
        for pid, role, application, _ in rows
    ]
    grants = sorted(
        {f"GRANT {quoted(role)} TO {ours};" for _, role, _, superuser in rows if not superuser}
    )
    if grants:
        lines.append(f"\nEnd it, or run as a superuser: {' '.join(grants)}")
    if any(superuser for *_, superuser in rows):
        lines.append(
            "\nOnly a superuser may end a superuser's session: end it, or let url name a superuser."
        )
    return "".join(lines)
