"""Which privilege is missing, and the statement that gives it: what to say when the server has refused."""

from __future__ import annotations

import psycopg

from .errors import PermissionMissing
from .server import Server


def quoted(name: str) -> str:
    """Return an identifier as it stands in a statement that a person is to run."""
    return '"' + name.replace('"', '""') + '"'


def to_create(server: Server, template: str, error: psycopg.Error) -> PermissionMissing:
    """Return the error for a CREATE DATABASE … TEMPLATE that the server has refused."""
    role = quoted(server.facts.role)
    ((may,),) = server.fetch("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user")
    if not may:
        return PermissionMissing(
            f"role {server.facts.role!r} may not create databases on {server.where} any more",
            str(error).strip(),
            f"Run as a superuser: ALTER ROLE {role} CREATEDB;",
        )
    return PermissionMissing(
        f'role {server.facts.role!r} may not copy "{template}"',
        f"{str(error).strip()}\nOnly its owner and superusers may copy a database that is no template.",
        f"Run as a superuser: ALTER DATABASE {quoted(template)} OWNER TO {role};",
    )


def to_end(server: Server, name: str) -> str:
    """Return who is connected to a database and may not be sent away by us, and what would allow it: further lines of an error."""
    rows = server.fetch(
        "SELECT a.pid, a.usename::text, coalesce(a.application_name, ''), r.rolsuper FROM pg_stat_activity a"
        " JOIN pg_roles r ON r.oid = a.usesysid WHERE a.datname = %s AND NOT pg_has_role(r.oid, 'USAGE') ORDER BY 1",
        [name],
    )
    if not rows:
        return ""
    ours = quoted(server.facts.role)
    lines = [f"\nSession {pid} of role {quoted(role)} calls itself {application!r}." for pid, role, application, _ in rows]
    grants = sorted({f"GRANT {quoted(role)} TO {ours};" for _, role, _, superuser in rows if not superuser})
    if grants:
        lines.append(f"\nEnd it, or run as a superuser: {' '.join(grants)}")
    if any(superuser for *_, superuser in rows):
        lines.append("\nOnly a superuser may end a superuser's session: end it, or let url name a superuser.")
    return "".join(lines)
