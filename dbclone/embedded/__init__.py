"""A server of our own: found or made, started or found running, and stopped by the last one to leave.

Everything that differs between operating systems is below here; what leaves this room is a Dsn.

Who uses the server is known to the server itself: each user holds a shared advisory lock for as long as it lives, and only who
gets the same lock exclusively may stop it. A killed process holds no lock, so nothing has to be cleaned up after it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from ..dsn import Dsn
from ..errors import ServerError
from ..schema import digest
from ..settings import Settings
from .account import Account, cache_folder, private_folder, server_account
from .binaries import Binaries, find
from .cluster import Cluster, free_bytes, sweep

__all__ = ["Embedded"]

USERS_KEY = 0x6462_636C_6F6E_6501  # "dbclone" and 1
_ROOM = 512 * 2**20  # below this much free memory, data go to disk
_SOCKET_LIMIT = 100  # bytes of path; sockaddr_un holds 108 on Linux and 104 on macOS, minus ".s.PGSQL.5432"


Connect = Callable[[Dsn], "psycopg.Connection[tuple[Any, ...]]"]


@dataclass
class Embedded:
    """The private server of this user, cache folder and PostgreSQL version.

    `dsn` leads to its maintenance database; `connection` is the one that makes us a user of it, open from `open` to `leave`;
    `started` says whether this process started it.
    """

    cluster: Cluster
    home: Path
    disk: Path
    lock_path: Path
    started: bool = False
    connection: psycopg.Connection[tuple[Any, ...]] | None = field(default=None, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def dsn(self) -> Dsn:
        return Dsn((("host", str(self.cluster.socket)), ("port", "5432"), ("user", "postgres"), ("dbname", "postgres")))

    @classmethod
    def locate(cls, settings: Settings) -> Embedded:
        """Return the server that `settings` mean, running or not, without starting anything. Raises ServerNotFound."""
        account = server_account()
        binaries = find(settings)
        cache = cache_folder(settings)
        disk = Path("/var/tmp") / _name(cache, account) if account.other else cache / "server"
        home = _home(settings, cache, account, binaries, disk)
        lock = private_folder(cache / "locks") / f"server-{binaries.key}.lock"
        return cls(_cluster(home / binaries.key, binaries, account), home, disk, lock)

    @classmethod
    def open(cls, settings: Settings, connect: Connect) -> Embedded:
        """Return the running server as one of its users, started if it was not.

        Arguments: `connect`, makes the connection that we use it through. Raises ServerNotFound or ServerError.
        """
        server = cls.locate(settings)
        if server._join(connect):
            return server
        from filelock import FileLock, Timeout  # not needed, nor paid for, when the server runs

        patience = settings.connect_timeout * 3
        try:
            with FileLock(server.lock_path, timeout=patience, mode=0o600):
                server._start(settings, connect)
        except Timeout:
            raise ServerError(
                f"another process has been starting the private server for {patience:g} s",
                f"It holds {server.lock_path}.",
                "Find it and end it, or set connect_timeout if the machine is that slow.",
            ) from None
        return server

    def _start(self, settings: Settings, connect: Connect) -> None:
        cluster = self.cluster
        deadline = time.monotonic() + settings.connect_timeout
        while cluster.pid() is not None:  # starting, stopping, or ready since we looked
            if self._join(connect):
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the private server in {cluster.folder} (process {cluster.pid()}) does not answer",
                    f"The end of {cluster.log}:\n{cluster.log_tail()}",
                    "End that process; the next run starts a new server.",
                )
            time.sleep(0.01)
        account = cluster.account
        self._prepare_folders(settings)
        binaries = cluster.binaries.readable_by(account, self.disk)
        self.cluster = _cluster(cluster.folder, binaries, account)
        if not self.cluster.is_sound():
            sweep(self.home, cache_folder(settings))
            try:
                self.cluster.init()
            except ServerError:
                self.cluster.remove()
                if self.home == self.disk or settings.data_dir:
                    raise
                # The memory file system filled up after we looked, or is not for us: the disk will do.
                self.home = self.disk
                self.cluster = _cluster(self.disk / cluster.folder.name, binaries, account)
                self._prepare_folders(settings)
                self.cluster.init()
        self._process = self.cluster.start(settings.connect_timeout)
        self.started = True
        if not self._join(connect):
            raise ServerError(f"the private server in {self.cluster.folder} stopped at once", self.cluster.log_tail(), "Run again.")

    def _prepare_folders(self, settings: Settings) -> None:
        for folder in dict.fromkeys((self.home, self.cluster.folder, self.cluster.socket)):
            private_folder(folder, self.cluster.account)

    def _join(self, connect: Connect) -> bool:
        """Become a user of the server if it runs; return whether we are one."""
        if not (self.cluster.socket / ".s.PGSQL.5432").exists():
            return False
        connection = None
        try:
            connection = connect(self.dsn)
            # Whoever is about to stop the server holds this lock exclusively: then we wait, and are thrown out with the server.
            connection.execute("SELECT pg_catalog.pg_advisory_lock_shared(%s)", [USERS_KEY])
        except (psycopg.OperationalError, ServerError):
            if connection is not None:
                connection.close()
            return False
        self.connection = connection
        return True

    def leave(self, keep: bool = False) -> bool:
        """Stop being a user; stop the server if nobody else uses it, unless `keep`. Return whether it was stopped."""
        connection, self.connection = self.connection, None
        stopped = False
        if connection is None:
            return False
        try:
            if not keep and not self.is_kept() and not connection.closed:
                connection.execute("SELECT pg_catalog.pg_advisory_unlock_shared(%s)", [USERS_KEY])
                row = connection.execute(
                    "SELECT pg_catalog.pg_try_advisory_lock(%s) AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid())",
                    [USERS_KEY],
                ).fetchone()
                if row is not None and row[0]:
                    stopped = self.cluster.stop()
        except psycopg.OperationalError:
            pass  # stopped by somebody else in the meantime
        finally:
            connection.close()
        if self._process is not None:
            if stopped or self.cluster.pid() is None:
                self._process.wait()
            else:
                # The server outlives us on purpose; without this, Popen warns when it is collected.
                self._process.returncode = self._process.poll() or 0
            self._process = None
        return stopped

    def is_kept(self) -> bool:
        """Return whether somebody asked for the server to be left running (`dbclone server start`)."""
        return (self.cluster.folder / "keep").exists()

    def keep(self, on: bool) -> None:
        """Leave the server running from now on, or no longer."""
        path = self.cluster.folder / "keep"
        if on:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        else:
            path.unlink(missing_ok=True)


def _home(settings: Settings, cache: Path, account: Account, binaries: Binaries, disk: Path) -> Path:
    """Return the folder for clusters: where this one is already, else in memory if there is room, else on disk."""
    if settings.data_dir:
        return (settings.root / Path(settings.data_dir).expanduser()).absolute()
    if sys.platform != "linux":
        return disk
    memory = Path("/dev/shm") / _name(cache, account)
    for home in (memory, disk):
        if (home / binaries.key / "data" / "PG_VERSION").is_file():
            return home
    return memory if free_bytes("/dev/shm") >= _ROOM and os.access("/dev/shm", os.W_OK | os.X_OK) else disk


def _cluster(folder: Path, binaries: Binaries, account: Account) -> Cluster:
    """Return the cluster in `folder`; its socket is there too unless the path is longer than the platform allows."""
    socket = folder
    if len(str(folder / ".s.PGSQL.5432").encode()) > _SOCKET_LIMIT:
        socket = Path(tempfile.gettempdir()) / f"dbclone-{account.uid}-{digest(str(folder).encode())[:12]}"
    return Cluster(folder, socket, binaries, account)


def _name(cache: Path, account: Account) -> str:
    """Return a folder name that is one user's, one server account's and one cache folder's."""
    return f"dbclone-{os.getuid()}-{account.uid}-{digest(str(cache).encode())[:8]}"
