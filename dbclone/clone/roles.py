"""The application's own role: as whom it connects to a clone, so that row-level security, grants
and ownership count there.

The setting `role` names it. Without the setting it is the user that the application's handle itself
connects as, if the schema knows that user: if something in the template is granted to it, or to a
role that it belongs to, or is its own. A name that merely happens to exist on the server is not
enough, because roles are shared by all its databases. The private server makes a role that the
setting names, with LOGIN and no other right; on any other server it has to be there. No role is
ever dropped, and none loses a right.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from ..adapters import handles
from ..databases.naming import Database
from ..errors import PermissionMissing
from ..server.connect import quoted
from ..server.connection import connect
from ..server.dsn import Dsn
from ..server.roles import ensure_role
from ..server.server import Server

ROW_SECURITY = (
    "row-level security"  # in the mark of a template: what `tables_with_row_security` returns
)


# Whether the role that asks may act as another one, which a template knows: pg_shdepend says which
# roles a database mentions as owners, in grants and in policies (PostgreSQL documentation,
# catalog-pg-shdepend); pg_authid is 1260.
_KNOWN = """SELECT pg_has_role(r.oid, 'USAGE') FROM pg_roles r
    WHERE r.rolname = %s AND NOT r.rolsuper AND EXISTS (SELECT FROM pg_shdepend d
        WHERE d.dbid = %s AND d.refclassid = 1260 AND pg_has_role(r.oid, d.refobjid, 'MEMBER'))"""


@dataclass(frozen=True)
class Role:
    """As whom the application connects: `name`; `password`, where the handle tells it; `asked`,
    whether the setting names it."""

    name: str
    password: str = field(default="", repr=False)
    asked: bool = False

    def dsn(self, dsn: Dsn) -> Dsn:
        """Return where `dsn` leads, entered as this role: without the password of whoever else
        enters there."""
        return (
            dsn
            if dsn.get("user") == self.name
            else dsn.replace(user=self.name, password=self.password)
        )


def require(server: Server) -> None:
    """Raise SettingsError if the role that the setting names is not on the server: also the schema
    has not made it."""
    name = server.settings.role
    if name and not ensure_role(server, name, login=True):
        raise server.settings.error(
            "role",
            f"there is no such role on {server.where}",
            f"Run as a superuser: CREATE ROLE {quoted(name)} LOGIN PASSWORD '…'; or leave url"
            f" out: the private server makes it.",
        )


def role_for(server: Server, template: Database, handle: object) -> Role | None:
    """Return as whom the application is to connect to copies of a template; None for the role that
    builds.

    That is the setting's, or else the handle's own user, if the schema knows it and it is no
    superuser. On a server that is not ours the role that builds must be able to act as it, too, or
    it could not end its sessions.
    """
    name, password = handles.login(handle)
    asked = server.settings.role
    if asked:
        return (
            None
            if asked == server.facts.role
            else Role(asked, password if name == asked else "", True)
        )
    if not name or name == server.facts.role:
        return None
    rows = server.fetch(_KNOWN, [name, template.oid])
    return Role(name, password) if rows and (rows[0][0] or server.embedded is not None) else None


def _beyond_reach(server: Server, template: Database, handle: object) -> str:
    """Return the handle's own user, if the schema knows it and the role that builds may not act as
    it; else an empty string."""
    name = handles.login(handle)[0]
    if server.settings.role or not name or name == server.facts.role:
        return ""
    return name if server.fetch(_KNOWN, [name, template.oid]) == [(False,)] else ""


def of_application(
    server: Server, template: Database, dsn: Dsn, handle: object, note: Callable[[str], None]
) -> Role | None:
    """Return as whom the application connects to the copy of a template at `dsn`, having tried it;
    None for the role that builds.

    Arguments: `note`, told if it is not the setting that decides. Raises PermissionMissing if the
    setting's role cannot connect; a handle's own user that cannot is given up.
    """
    role = role_for(server, template, handle)
    if role is None:
        if name := _beyond_reach(server, template, handle):
            note(
                f"the application's own role {name} is not used, because {server.facts.role} may"
                f" not act as it (GRANT {quoted(name)} TO {quoted(server.facts.role)}, or set"
                f' role = "{name}"): the application connects as {server.facts.role}'
            )
        return None
    if server.embedded is not None:
        ensure_role(server, role.name, login=True)
        role = replace(role, password="")  # nobody is asked for one there
    try:
        timeout = str(max(2, round(server.settings.connect_timeout)))
        with contextlib.closing(
            connect(role.dsn(dsn), connect_timeout=dsn.get("connect_timeout", timeout))
        ):
            pass
    except psycopg.OperationalError as error:
        text = role.dsn(dsn).mask(str(error).strip())
        if role.asked:
            raise _refused(server, role, dsn.get("dbname"), text) from None
        note(
            f"the application's own role {role.name} cannot connect, so it connects as"
            f" {server.facts.role}: {' '.join(text.splitlines()[-1].split())}"
        )
        return None
    if not role.asked:
        off = f'role = "{server.facts.role}"'
        note(
            f"the application connects as {role.name}, as its handle does and the schema"
            f" expects ({off} turns that off)"
        )
    return role


def _refused(server: Server, role: Role, database: str, text: str) -> PermissionMissing:
    """Return the error for the setting's role that cannot connect. Why is asked of the catalogues:
    the server says it in any language."""
    name = quoted(role.name)
    ((login, may),) = server.fetch(
        "SELECT rolcanlogin, has_database_privilege(rolname, %s, 'CONNECT') FROM pg_roles"
        " WHERE rolname = %s",
        [database, role.name],
    )
    if not login:
        hint = f"Run as a superuser: ALTER ROLE {name} LOGIN;"
    elif not may:
        hint = (
            "The schema takes CONNECT away from PUBLIC; let it give that to the role, too:\n"
            "DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(),"
            f" {sql.Literal(role.name).as_string(None)}); END $$;"
        )
    else:
        hint = (
            "Its password is the handle's own, where the handle connects as this role, else what"
            " libpq finds: write it into the file that PGPASSFILE names (~/.pgpass)."
        )
    return PermissionMissing(
        f"the application's role {role.name!r} cannot connect to {server.where}",
        f"{text}\nThe role comes from {server.settings.source('role')}.",
        hint,
    )


def tables_with_row_security(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """Return which tables of a database have row-level security, as JSON: by owner and whether it
    is forced on the owner too, the first by name and how many there are; an empty string if there
    are none."""
    rows = connection.execute(
        "SELECT min(c.oid::regclass::text), count(*), r.rolname::text, c.relforcerowsecurity"
        " FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.relrowsecurity"
        " AND c.relkind IN ('r', 'p') GROUP BY 3, 4 ORDER BY 1"
    ).fetchall()
    return json.dumps([list(row) for row in rows]) if rows else ""


def unbound(server: Server, template: Database, role: str, handle: object = None) -> str:
    """Return in one line that row-level security in a template's copies does not bind a role, as
    whom the application connects; empty if it does, or there is none. A superuser, BYPASSRLS and,
    unless it is forced, the owner are not bound (PostgreSQL documentation, ddl-rowsecurity)."""
    found = (
        json.loads(template.mark.manifest.get(ROW_SECURITY, "[]"))
        if template.mark is not None
        else []
    )
    if not found:
        return ""
    ((above, owners),) = server.fetch(
        "SELECT r.rolsuper OR r.rolbypassrls, ARRAY(SELECT o.rolname::text FROM pg_roles o"
        " WHERE pg_has_role(r.oid, o.oid, 'USAGE')) FROM pg_roles r WHERE r.rolname = %s",
        [role],
    ) or [(True, [])]
    free = [
        (name, count)
        for name, count, owner, forced in found
        if above or (owner in owners and not forced)
    ]
    if not free:
        return ""
    more = sum(count for _, count in free) - 1
    own = handles.login(handle)[0]
    set_it = f'role = "{own}"' if own and own != role else "role to the application's own"
    return (
        f"row-level security on {free[0][0]}{f' (+{more} more)' if more else ''} does not bind role"
        f" {role}, as whom the tests run: set {set_it}"
    )
