"""A connection to the server that was lost: said in our own words, and made anew as soon as the
server admits us again.

The leases went with the connection, so whatever they protected may be gone: they are taken again
before anything else is done, and whoever comes back here makes a fresh copy instead of trusting an
old one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg

from ..errors import ServerError, ServerNotFound
from ..process.clock import monotonic
from .server import Facts, Server
from .sessions import holders

T = TypeVar("T")
log = logging.getLogger("dbclone")
# admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout (PostgreSQL
# documentation, errcodes-appendix)
_ENDED = ("57P01", "57P02", "57P03", "57P05")


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that a connection broke, or none could be made just now."""
    if isinstance(error, ServerNotFound):
        return True
    if not isinstance(error, psycopg.OperationalError):
        return False
    state = error.sqlstate  # none: it is not the server who says it
    return state is None or state in _ENDED or state.startswith("08")


def is_alive(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a connection is open as far as the other side has said, without asking it.
    Costs two system calls."""
    if connection.closed:
        return False
    try:
        for _ in range(2):  # a message that nobody asked for may come before the end
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        connection.close()
        return False
    return True


@contextlib.contextmanager
def translate_lost_connection(server: Server, doing: str) -> Iterator[None]:
    """Raise ServerError for a connection that is lost in the block, for a statement that somebody
    cancels, or for a lock that is not to be had, `doing` something."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        raise ServerError(
            f"a lock was not to be had on {server.where} while {doing}",
            "\n".join([str(error).strip(), *holders(server)]),
            "End that session, or its transaction, and run again: what was left half done is"
            " never used.",
        ) from None
    except psycopg.OperationalError as error:
        if not (is_lost(error) or isinstance(error, psycopg.errors.QueryCanceled)):
            raise
        what = (
            "the connection to {} was lost while {}"
            if is_lost(error)
            else "{} was told to cancel a statement while {}"
        )
        raise ServerError(
            what.format(server.where, doing),
            server.dsn.mask(str(error).strip()),
            "Find out who did that, and run again: what was left half done is never used,"
            " and the next run drops it.",
        ) from None


def retry_once(
    server: Server, doing: str, attempt: Callable[[], T], repair: Callable[[], None]
) -> T:
    """Return what `attempt` returns; if a connection is lost in it, repair and attempt it again,
    once.

    Arguments: `doing`, for the error if that is in vain too. Raises ServerError then, and whatever
    else the two raise.
    """
    with translate_lost_connection(server, doing):
        try:
            return attempt()
        except (psycopg.OperationalError, ServerError) as error:
            if not is_lost(error):
                raise
            log.warning(
                "a connection to %s was lost while %s: %s",
                server.where,
                doing,
                server.dsn.mask(str(error).strip()),
            )
        repair()
        return attempt()


def reconnect(server: Server) -> None:
    """Give a server a new administrative connection for the one that was lost, with all leases that
    it had.

    Waits for it for `connect_timeout` seconds, and no more if that has been in vain before. Raises
    ServerError; then the server's connection is closed still. Does nothing if it was another
    connection that was lost.
    """
    if is_alive(server.connection):
        return
    deadline = monotonic() + (0 if server.gone else server.settings.connect_timeout)
    before, server.gone = server.facts, True
    while True:
        try:
            connection = server.connect_again()
            break
        except ServerError:
            if monotonic() > deadline:
                raise
        time.sleep(0.02)
    with (
        translate_lost_connection(server, "connecting to it again"),
        contextlib.ExitStack() as stack,
    ):
        stack.callback(connection.close)
        if (now := Facts.ask(connection)).system != before.system:
            raise ServerError(
                f"another server answers at {server.where} than before",
                f"Its system identifier is {now.system}, and was {before.system}.",
                "Run again: what was made for the tests is not on this one.",
            )
        try:
            server.leases.reacquire(connection, deadline)
        except TimeoutError as lease:
            raise ServerError(
                f"after the connection to {server.where} was lost, somebody else has the"
                f" lease of {str(lease)!r}",
                f"It is held by {server.leases.holder(str(lease))}.",
                "If that is our own lost session, the server has not noticed its end yet:"
                " end it, and run again.",
            ) from None
        stack.pop_all()
    server.sessions.add(connection)
    server.connection, server.gone = connection, False
