"""psycopg2 connections into a sandbox: psycopg2's own, which lead to a conversation in this process
instead of to a server.

`psycopg2.connect` takes the class of the connection as an argument, `connection_factory`; ours
sends each new connection to a socket of this process. So rows, types, notices, errors, cursors and
whatever builds upon them are psycopg2's own work.

Imported only where an application uses psycopg2.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions as extensions
from psycopg2._psycopg import sqlstate_errors

from ...errors import SandboxLimit
from ...process.forks import cut
from .backend import LIMIT
from .server import PORT, Conversation

#: Private names of psycopg2 that are used here; a test holds them against the installed version.
PRIVATE = {"psycopg2._psycopg": ("sqlstate_errors",)}

if TYPE_CHECKING:
    from ..session import Session

_MARGIN = 1 << 15  # bytes that a socket takes in any case, and more than libpq keeps back
_HEAD = 5  # bytes before the data in each message
# So that neither the application's parameters nor the environment's lead elsewhere, or ask for what
# a local socket does not have.
_PLACE = {"hostaddr": "", "sslmode": "disable", "gssencmode": "disable"}
_DEMANDS = {
    "channel_binding": "disable",
    "require_auth": "",
    "requirepeer": "",
    "target_session_attrs": "any",
}


class _Limit(SandboxLimit):
    """A SandboxLimit that came through psycopg2, which makes an error from nothing but its text."""

    __module__ = "dbclone"

    def __init__(self, text: str) -> None:
        text, _, hint = text.strip().partition("\nHINT:  ")
        message, _, detail = text.partition("\nDETAIL:  ")
        super().__init__(message, detail, hint)

    def __reduce__(self) -> Any:
        return SandboxLimit, (self.message, self.detail, self.hint)


_Limit.__name__ = _Limit.__qualname__ = "SandboxLimit"


class _Drained:
    """A file for COPY FROM that is read no faster than its data arrive.

    psycopg2 sends the end of the data without letting another thread run. Were the socket full
    then, the thread that empties it could not, and both would wait for ever.
    """

    def __init__(self, file: Any, connection: Any) -> None:
        self._file, self._conversation = file, connection._conversation
        self._encoding = extensions.encodings[connection.encoding]
        self._given: int | None = None

    def read(self, *size: int) -> Any:
        if self._given is None:  # whatever came before the COPY has been answered
            self._given = self._conversation.received
        self._conversation.wait_for(self._given - _MARGIN)
        data = self._file.read(*size)
        if data:
            self._given += _HEAD + len(
                data.encode(self._encoding, "replace") if isinstance(data, str) else data
            )
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Cursor(extensions.cursor):  # type: ignore[misc]  # psycopg2 has no types
    """What is mixed into the application's cursor class."""

    def execute(self, *arguments: Any, **keywords: Any) -> Any:
        self.connection._here()
        return super().execute(*arguments, **keywords)

    def _drain(self, file: Any) -> Any:
        self.connection._here()
        return _Drained(file, self.connection) if hasattr(file, "read") else file

    def copy_from(self, file: Any, *arguments: Any, **keywords: Any) -> Any:
        return super().copy_from(self._drain(file), *arguments, **keywords)

    def copy_expert(self, sql: Any, file: Any, *arguments: Any, **keywords: Any) -> Any:
        return super().copy_expert(sql, self._drain(file), *arguments, **keywords)


class _Connection(extensions.connection):  # type: ignore[misc]  # psycopg2 has no types
    """What is mixed into the application's connection class."""

    _gate: Connector
    _conversation: Conversation | None = None

    def __init__(self, dsn: str, *arguments: Any, **keywords: Any) -> None:
        given = extensions.parse_dsn(dsn)
        self._given = {**given, "password": "xxx"} if "password" in given else given
        demands = {key: value for key, value in _DEMANDS.items() if key in given}
        with self._gate._listening() as conversation:
            self._conversation = conversation
            place = {**_PLACE, **demands, "host": conversation.folder, "port": PORT}
            super().__init__(extensions.make_dsn(dsn, **place), *arguments, **keywords)

    @property
    def dsn(self) -> str:
        return str(extensions.make_dsn(**self._given))

    def cursor(
        self,
        name: Any = None,
        cursor_factory: Any = None,
        withhold: bool = False,
        scrollable: Any = None,
    ) -> Any:
        factory = cursor_factory or self.cursor_factory or extensions.cursor
        return super().cursor(name, self._gate._mixed_class(factory, _Cursor), withhold, scrollable)

    def _here(self) -> None:
        self._gate._session.session_lock.home.require()
        if self._conversation is not None:
            self._conversation.backend.speaks_for(threading.get_ident())

    def commit(self) -> None:
        self._here()
        super().commit()

    def rollback(self) -> None:
        self._here()
        super().rollback()

    def cancel(self) -> None:
        """As psycopg2's, which would wait for the answer without letting the
        thread run that gives it."""
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        assert self._conversation is not None
        self._conversation.backend.cancel()

    def close(self) -> None:
        """As psycopg2's; and what is left open is rolled back before anything else happens."""
        forked = os.getpid() != self._gate._pid
        if forked and not self.closed:
            cut(self.fileno())  # or else the goodbye would end our parent's connection
        super().close()
        if self._conversation is not None and not forked:
            self._conversation.backend.finish()

    def __del__(self) -> None:
        conversation = self._conversation
        if conversation is None or os.getpid() != self._gate._pid:
            return
        super().close()
        # Whoever collects the garbage may be in the middle of a statement: then the thread that
        # serves this connection rolls back.
        if self._gate._session.session_lock._hold is None:
            with contextlib.suppress(SandboxLimit):
                conversation.backend.finish()


class Connector:
    """Opens psycopg2 connections into a sandbox.

    Arguments: `session`, the sandbox. Use as a context manager: at its end all connections are
    broken.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pid = os.getpid()
        self._encoding = session.real.pgconn.parameter_status(b"client_encoding")
        self._conversations: list[Conversation] = []
        self._classes: dict[tuple[Any, Any], Any] = {}
        sqlstate_errors.setdefault(LIMIT, _Limit)

    def __enter__(self) -> Connector:
        return self

    def __exit__(self, *_: object) -> None:
        for conversation in self._conversations if os.getpid() == self._pid else ():
            conversation.hang_up()
        self._conversations.clear()

    def connect(self, *arguments: Any, **keywords: Any) -> Any:
        """As `psycopg2.connect`, for a connection into the sandbox, wherever the arguments lead."""
        keywords["connection_factory"] = self.factory(keywords.get("connection_factory"))
        return psycopg2.connect(*arguments, **keywords)

    def factory(self, given: Any = None) -> Any:
        """Return the `connection_factory` for `psycopg2.connect`; `given`, the application's own,
        if it has one."""
        made = self._mixed_class(given or extensions.connection, _Connection)
        made._gate = self
        return made

    def _mixed_class(self, given: Any, ours: Any) -> Any:
        """Return the application's class with ours mixed in, below it, so that what it overrides
        comes first."""
        if not isinstance(given, type) or issubclass(given, ours):
            return given
        if (given, ours) not in self._classes:
            bases = (given, ours) if given is not ours.__mro__[1] else (ours,)
            self._classes[given, ours] = type(
                given.__name__, bases, {"__module__": given.__module__}
            )
        return self._classes[given, ours]

    @contextlib.contextmanager
    def _listening(self) -> Iterator[Conversation]:
        """Listen for one connection, which is made in the block."""
        conversation = Conversation(self._session, self._encoding)
        self._conversations = [other for other in self._conversations if other.thread.is_alive()]
        self._conversations.append(conversation)
        try:
            yield conversation
        except BaseException:
            conversation.hang_up()
            raise
