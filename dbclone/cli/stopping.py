"""Stopping the private server when asked to: not while others use it, unless that is meant."""

from __future__ import annotations

import contextlib

import psycopg

from ..databases import ddl
from ..errors import ServerError
from ..server.connect import open_session, readable
from ..server.locks import lock_key
from ..server.private.embedded import Embedded
from ..server.server import Server
from ..settings import Settings

_SHOWN = 10  # sessions


def stop(settings: Settings, located: Embedded, force: bool = False) -> None:
    """Stop the private server if it runs, and let the next one end with its last user.

    Arguments: `located`, the server; `force`, end those who use it along with it. Raises
    ServerError if somebody uses it, whether by dbclone or by any other session, and if it does not
    stop; then all is as it was.
    """
    pid = located.cluster.pid()
    if pid is not None and force:
        if not located.cluster.stop(settings.connect_timeout):
            raise ServerError(
                f"the private server (process {pid}) does not stop",
                located.cluster.log_tail(),
                f"End it: kill -QUIT {pid}",
            )
    elif pid is not None:
        _stop_unused(settings, located, pid)
    located.keep(False)


def _stop_unused(settings: Settings, located: Embedded, pid: int) -> None:
    forced = "python -m dbclone server stop --force"
    try:
        connection = located.rejoin(lambda dsn: open_session(dsn, settings, "admin"))
    except ServerError as error:
        if located.cluster.pid() is None:
            return
        raise ServerError(
            f"who uses the private server (process {pid}) cannot be found out: {error.message}",
            error.detail,
            f"Whatever it is doing, it can be ended by: {forced}",
        ) from None
    with contextlib.closing(connection):
        readable(connection)
        runs = _runs(Server(settings, located.dsn, connection, located, connection.info.dbname))
        users = located.stop(settings.connect_timeout)
    if users:
        count = f"{len(users)} session{'s' if len(users) != 1 else ''}"
        alive = f": {runs} run{'s are' if runs != 1 else ' is'} alive" if runs else ""
        more = [f"And {len(users) - _SHOWN} more."] if len(users) > _SHOWN else []
        raise ServerError(
            f"the private server is in use by {count}{alive}",
            "\n".join([*users[:_SHOWN], *more]),
            f"Wait for them. If they are to end with it: {forced}",
        )


def _runs(server: Server) -> int:
    """Return how many runs have clones at this moment."""
    try:
        known = ddl.list_databases(server)
        held = server.leases.held()
    except psycopg.Error:
        return 0
    return len(
        {
            d.mark.run
            for d in known
            if d.mark is not None and d.mark.run and lock_key(d.name) in held
        }
    )
