"""Roles that a schema or a setting names: made on the private server, which is ours; looked at, and
nothing else, on any other.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from ..errors import SettingsError
from .server import Server


def _can_log_in(server: Server, name: str) -> bool | None:
    """Return whether a role may log in; None if there is no such role."""
    rows = server.fetch("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", [name])
    return bool(rows[0][0]) if rows else None


def ensure_role(server: Server, name: str, login: bool = False) -> bool:
    """Return whether a role is there; on the private server it is made if it is not.

    Arguments: `login`, it has to be able to log in: on the private server it gets LOGIN, and
    nothing else, if it lacks that. Other servers are only looked at. Raises SettingsError for a
    name that no role can have.
    """
    if len(name.encode()) > _LONGEST:
        raise SettingsError(
            f"{name!r} is too long for a role",
            f"PostgreSQL cuts names of more than {_LONGEST} bytes.",
            "Use the name that it has.",
        )
    for last in (False, False, True):
        found = _can_log_in(server, name)
        if server.embedded is None or (found is not None and (found or not login)):
            return found is not None
        # What CREATE ROLE gives by itself: no superuser, no databases, no roles, no replication, no
        # bypassing of policies.
        statement = sql.SQL("CREATE ROLE {} {}" if found is None else "ALTER ROLE {} {}")
        try:
            server.connection.execute(
                statement.format(sql.Identifier(name), sql.SQL("LOGIN" if login else "NOLOGIN"))
            )
            break
        except _RACED:
            if last:
                raise
        except psycopg.errors.ReservedName as error:
            raise SettingsError(
                f"{name!r} cannot be a role", str(error).strip(), "Use another name."
            ) from None
    return True


# Two who make the same role at the same time: the later one finds it there, or its row in an index,
# or just changed.
_RACED = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
    psycopg.errors.InternalError_,
)
_LONGEST = 63  # bytes of a name: NAMEDATALEN in src/include/pg_config_manual.h
