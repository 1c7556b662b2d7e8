"""One client of the sandbox that speaks PostgreSQL's wire protocol over a socket: a driver other
than psycopg 3, as it is.

A thread serves it, because the driver blocks while it waits.
"""

from __future__ import annotations

import contextlib
import posix
import secrets
import socket
import struct
import tempfile
import threading
from typing import TYPE_CHECKING

import psycopg

from ...errors import SandboxLimit
from . import messages
from .backend import Backend

if TYPE_CHECKING:
    from ..session import Session

PORT = "5432"
_LONGEST = 64  # characters: the path of a socket has room for a hundred or so
_PATIENCE = 60.0  # seconds to wait for data that are on their way


class Conversation:
    """Serves one client, which may connect to the socket in `folder` as soon as this is made; the
    folder lasts until it has.

    Arguments: `session`, the sandbox; `encoding`, which the client begins with if it does not say
    another.
    """

    def __init__(self, session: Session, encoding: bytes | None = None) -> None:
        self.backend = Backend(session, self._copying, encoding)
        parent = tempfile.gettempdir()
        self.folder = (
            f"{parent if len(parent) < _LONGEST else '/tmp'}/dbclone-{secrets.token_hex(8)}"
        )
        # Not os.mkdir: os is a fake one in a test that uses pyfakefs
        posix.mkdir(self.folder, 0o700)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._place)
        self._listener.listen(1)
        self._socket: socket.socket | None = None
        self._unread = b""
        self._arrival = threading.Condition()
        self._ended = False
        self.received = 0  # bytes
        self.thread = threading.Thread(target=self._serve, name="dbclone sandbox", daemon=True)
        self.thread.start()

    @property
    def _place(self) -> str:
        return f"{self.folder}/.s.PGSQL.{PORT}"

    def hang_up(self) -> None:
        """End the conversation from our side, and wait until it has ended: the client finds its
        connection broken."""
        if self._socket is None:  # nobody has come, and so we do
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as nobody:
                nobody.connect(self._place)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(_PATIENCE)

    def wait_for(self, count: int) -> None:
        """Wait until `count` bytes have been received in all, or the conversation has ended."""
        with self._arrival:
            self._arrival.wait_for(lambda: self.received >= count or self._ended, _PATIENCE)

    def _serve(self) -> None:
        try:
            with self._listener:
                self._socket = self._listener.accept()[0]
            posix.unlink(self._place)
            posix.rmdir(self.folder)
            with self._socket:
                if self._greet():
                    while self._answer():
                        pass
        except (OSError, EOFError, psycopg.Error):
            pass  # the client or the real session is gone, and the closed socket says so
        finally:
            with self._arrival:
                self._ended = True
                self._arrival.notify_all()
            self.backend.speaks_for(0)
            with contextlib.suppress(SandboxLimit):  # there is nobody left to tell
                self.backend.finish()

    def _greet(self) -> bool:
        """Answer the first messages; return whether others follow."""
        while (
            startup := messages.Startup.of(self._read(struct.unpack("!i", self._read(4))[0] - 4))
        ).code >> 16 != 3:
            if startup.code not in (messages.SSL_REQUEST, messages.GSS_REQUEST):
                return False
            self._send(b"N")
        begun = self.backend.start(startup)
        self._send(self.backend.answer())
        return begun

    def _answer(self) -> bool:
        """Answer one message; return whether another may follow."""
        kind, body = self._message()
        if kind == b"X":
            return False
        if kind == b"Q":
            self.backend.query(body[:-1])
        elif kind == b"F":
            self.backend.call(messages.Call.of(body))
        elif kind not in (b"d", b"c", b"f"):  # those are what is left of a COPY that has failed
            self.backend.refuse("a sandbox takes whole query strings only from this driver")
            self._send(self.backend.answer())
            return False
        self._send(self.backend.answer())
        return self.backend.alive

    def _copying(self) -> tuple[bytes, bytes]:
        self._send(self.backend.answer())
        return self._message()

    def _message(self) -> tuple[bytes, bytes]:
        head = self._read(5)
        return head[:1], self._read(struct.unpack("!i", head[1:])[0] - 4)

    def _read(self, size: int) -> bytes:
        assert self._socket is not None
        parts, have = [self._unread], len(self._unread)
        while have < size:
            part = self._socket.recv(max(65536, size - have))
            if not part:
                raise EOFError
            parts.append(part)
            have += len(part)
            with self._arrival:
                self.received += len(part)
                self._arrival.notify_all()
        whole = b"".join(parts)
        self._unread = whole[size:]
        return whole[:size]

    def _send(self, answer: bytes) -> None:
        assert self._socket is not None
        if answer:
            self._socket.sendall(answer)
