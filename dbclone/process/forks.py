"""What a forked process inherits of its parent, and must leave alone: sessions, locks and databases
have one owner."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from functools import partial
from typing import Any

from ..errors import SandboxLimit


class OwnerProcess:
    """The process in which something was made."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this process is another one, and so a fork."""
        return os.getpid() != self.pid

    def require(self) -> None:
        """Raise SandboxLimit in a fork."""
        if self.forked:
            raise SandboxLimit(
                f"process {os.getpid()} is a fork of {self.pid}, whose session this is",
                "A session has one client. What a test has written under rollback is in a"
                " transaction of its own process, where no other process can see it.",
                "Use threads, or isolate this test with"
                ' @pytest.mark.dbclone(reset="truncate") and connect anew in the child.',
            )


class Sessions:
    """Connections whose sockets a fork of this process loses, so that nothing that happens there
    reaches the server: not even the goodbye of a connection that is closed, which would end the
    parent's session."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=partial(_cut, weakref.ref(self)))

    def add(self, connection: Any) -> None:
        """Add a psycopg connection, for as long as it lives."""
        self._connections.add(connection)


def _cut(reference: weakref.ref[Sessions]) -> None:
    sessions = reference()
    for connection in sessions._connections if sessions is not None else ():
        with contextlib.suppress(Exception):  # it is closed already
            cut(connection.pgconn.socket)


def cut(number: int) -> None:
    """Put a socket whose other end is closed in the place of file descriptor `number`, in this
    process only."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        os.dup2(ours.fileno(), number, inheritable=False)
