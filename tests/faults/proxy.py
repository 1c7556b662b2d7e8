"""A network that breaks when a test says so: a proxy between clients, over TCP, and a real server,
over whatever leads to it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from dbclone.server.dsn import Dsn


@dataclass
class Wire:
    """One connection through the proxy, and the end of what its client has sent."""

    client: socket.socket
    server: socket.socket
    seen: bytes = b""

    def cut(self) -> None:
        """Break it: both sides find it closed, whatever they wait for."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@dataclass
class Proxy:
    """A proxy in front of the server that `dsn` leads to. `url` leads through it.

    Attributes: `deaf`, admit newcomers and never answer them; `closed`, turn them away; `cuts`, how
    often a trap has cut.
    """

    dsn: Dsn
    deaf: bool = False
    closed: bool = False
    cuts: int = 0
    _listener: socket.socket = field(
        default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=256)
    )
    _wires: list[Wire] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _waiting: list[socket.socket] = field(default_factory=list)
    _trap: bytes = b""
    _times: int = 0
    _forward: bool = False
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return self.dsn.replace(host="127.0.0.1", port=str(self._listener.getsockname()[1])).url

    def trap(self, text: bytes, times: int = 1, forward: bool = False) -> None:
        """Cut all connections as soon as a client sends `text`, for the next so many `times`.

        Arguments: `forward`, let the server have it first: then it does what it was told, and
        nobody hears of it.
        """
        with self._guard:
            self._trap, self._times, self._forward, self.cuts = text, times, forward, 0

    def cut(self) -> None:
        """Cut all connections now; new ones are let through."""
        with self._guard:
            wires, self._wires = self._wires, []
        for wire in wires:
            wire.cut()

    def serve(self) -> None:
        """Accept connections until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.closed:
                client.close()
            elif self.deaf:
                self._waiting.append(client)
            else:
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket(
            socket.AF_UNIX if self.dsn.get("host", "").startswith("/") else socket.AF_INET
        )
        host, port = self.dsn.get("host", "localhost"), int(self.dsn.get("port", "5432"))
        try:
            server.connect(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
        except OSError:  # it is being restarted
            client.close()
            server.close()
            return
        wire = Wire(client, server)
        with self._guard:
            self._wires.append(wire)
            self._threads.append(threading.Thread(target=self._pass, args=[wire], daemon=True))
            self._threads[-1].start()

    def _pass(self, wire: Wire) -> None:
        """Pass on what both sides say until one has no more to say, or is cut off; then neither
        hears anything."""
        with wire.client, wire.server, contextlib.suppress(OSError):
            while True:
                for source in select.select([wire.client, wire.server], [], [])[0]:
                    data = source.recv(65536)
                    springs = source is wire.client and self._springs(wire, data)
                    if not springs or self._forward:
                        (wire.server if source is wire.client else wire.client).sendall(data)
                    if springs:
                        self.cut()
                    if springs or not data:
                        return

    def _springs(self, wire: Wire, data: bytes) -> bool:
        with self._guard:
            wire.seen = wire.seen[-256:] + data
            if not (self._times and self._trap in wire.seen):
                return False
            self._times -= 1
            self.cuts += 1
            wire.seen = b""
            return True

    def end(self) -> None:
        """Stop, and leave nothing open."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for client in self._waiting:
            client.close()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def proxied(dsn: Dsn) -> Iterator[Proxy]:
    """Give a proxy to the server of `dsn` for the block."""
    proxy = Proxy(dsn)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.end()
