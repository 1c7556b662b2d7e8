"""What belongs to the whole server, where no reset reaches: roles, tablespaces, settings, and the
databases of others. A run or a build can only say what appeared."""

from __future__ import annotations

from .server import Server

_SHARED = """
SELECT 'role ' || rolname FROM pg_roles
UNION ALL SELECT 'tablespace ' || spcname FROM pg_tablespace
UNION ALL SELECT 'database ' || datname FROM pg_database WHERE datname !~ '^dbclone_'
UNION ALL SELECT concat('setting ', split_part(said, '=', 1), ' of ', coalesce(rolname, 'all'),
                        ' in database ' || datname)
    FROM pg_db_role_setting LEFT JOIN pg_roles r ON r.oid = setrole
    LEFT JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) AS said
    WHERE coalesce(datname !~ '^dbclone_', true)
"""
# Values are not shown: there are settings with passwords.
_SYSTEM = """UNION ALL SELECT 'setting ' || name FROM pg_file_settings
    WHERE sourcefile ~ 'postgresql.auto.conf$'"""


def list_shared_objects(server: Server) -> frozenset[str]:
    """Return what there is on a server besides our databases, in words. Only a superuser sees what
    ALTER SYSTEM has set."""
    return frozenset(
        name for (name,) in server.fetch(_SHARED + (_SYSTEM if server.facts.superuser else ""))
    )


def describe_new(server: Server, before: frozenset[str], during: str = "this run") -> str:
    """Return a line about what was not there `before`, whoever made it; empty if nothing is new."""
    new = sorted(list_shared_objects(server) - before)
    more = f" and {len(new) - 5} more" if len(new) > 5 else ""
    return (
        f"appeared on the server during {during}, where no reset undoes it:"
        f" {', '.join(new[:5])}{more}"
        if new
        else ""
    )
