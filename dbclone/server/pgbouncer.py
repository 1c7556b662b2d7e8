"""A connection pooler, such as PgBouncer, where the server should be: how it is told, and what to
do.

It lends sessions to others and keeps some open. So a lock would not say who is alive, and databases
could not be copied, renamed or dropped, whatever its mode: we do not begin.
"""

from __future__ import annotations

import re

from ..errors import ServerError

# Asked for as each session of ours begins, which a pooler refuses or ignores.
OPTION = "-c dbclone.direct=on"
# What PgBouncer says, in this language only, where it does not let a session begin.
_WORDS = (
    r"(?i)unsupported (options )?startup parameter"
    r"|FATAL:\s+no (such database: |more connections allowed)|query_wait_timeout"
)


def is_poolers(text: str) -> bool:
    """Return whether the text of an error is a pooler's and not the server's."""
    return re.search(_WORDS, text) is not None


def sign_of_pooler(opened: int, answers: int, direct: bool) -> str:
    """Return how we know that our session is a pooler's, or nothing.

    Arguments: `opened` and `answers`, the process ids of the session that was opened and of the one
    that answers; `direct`, whether that has begun with our options. Some providers' proxies number
    sessions anew, but each client's is its own.
    """
    if opened == answers or direct:
        return ""
    return (
        f"The session that answers is process {answers}, not {opened}, the one opened,"
        " and did not begin as we asked."
    )


def refusal(where: str, why: str) -> ServerError:
    """Return the error for a pooler at `where`; `why`, how we know."""
    return ServerError(
        f"a connection pooler such as PgBouncer is in front of the server at {where}",
        f"{why}\nLocks would not say who is alive, and databases to which it keeps sessions"
        f" could not be copied or dropped.",
        "Use the direct port: let url (or PGHOST and PGPORT) name the PostgreSQL server"
        " itself, whose port is 5432 unless somebody"
        " chose another, not its pooler, whose port often is 6432.",
    )
