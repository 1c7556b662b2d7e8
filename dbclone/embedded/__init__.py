"""A server of our own: found or made, started or found running, and stopped by the last one to leave.

Everything that differs between operating systems is below here; what leaves this room is a Dsn.

Who uses the server is known to the server itself: each user holds a shared advisory lock for as long as it lives, and only who
gets the same lock exclusively may stop it. A killed process holds no lock, so nothing has to be cleaned up after it.
"""

from __future__ import annotations

import contextlib
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

from ..clock import monotonic
from ..dsn import Dsn
from ..errors import OutOfConnections, ServerError
from ..file_lock import locked
from ..schema import digest
from ..settings import Settings
from .account import Account, cache_folder, check_private, open_own, private_folder, server_account
from .binaries import Binaries, find
from .cluster import Cluster, free_bytes, sweep

__all__ = ["Embedded"]

USERS_KEY = 0x6462_636C_6F6E_6501  # "dbclone" and 1
_ROOM = 512 * 2**20  # below this much free memory, data go to disk
_FULL = 64 * 2**20  # below this much free memory, a server that does not start is started on disk
_GOODBYES = 25  # hundredths of a second to wait for other sessions to end before the server is left to them
_OTHERS = """
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()),
       EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND classid::int8 = %s AND objid::int8 = %s)
"""
_STOPPER = """
SELECT a.pid, a.application_name, extract(epoch FROM clock_timestamp() - a.backend_start)::int
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' AND l.classid::int8 = %s AND l.objid::int8 = %s
"""
_AS_THEY_ARE = (OutOfConnections, ServerError)  # refusals that say all there is to say; that nothing answers is ServerNotFound
_STANDSTILL = 5000  # milliseconds
_WHO = """
SELECT a.pid, a.application_name, a.datname::text, extract(epoch FROM clock_timestamp() - a.backend_start)::int,
       a.application_name LIKE 'dbclone %%' OR EXISTS (
           SELECT FROM pg_catalog.pg_locks l
           WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.classid::int8 = %s AND l.objid::int8 = %s)
FROM pg_catalog.pg_stat_activity a WHERE a.backend_type = 'client backend' AND a.pid <> pg_catalog.pg_backend_pid()
ORDER BY a.backend_start, a.pid
"""
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
    _refusal: ServerError | None = field(default=None, repr=False)  # why we could not join the last time

    @property
    def dsn(self) -> Dsn:
        return Dsn((("host", str(self.cluster.socket)), ("port", "5432"), ("user", "postgres"), ("dbname", "postgres")))

    @classmethod
    def locate(cls, settings: Settings) -> Embedded:
        """Return the server that `settings` mean, running or not, without starting anything.

        Raises ServerNotFound, and ServerError if somebody else may have prepared its folders: then nobody is led there.
        """
        account = server_account()
        binaries = find(settings)
        cache = cache_folder(settings)
        disk = Path("/var/tmp") / _name(cache, account) if account.other else cache / "server"
        home = _home(settings, cache, account, binaries, disk)
        lock = private_folder(cache / "locks") / f"server-{binaries.key}.lock"
        server = cls(_cluster(home / binaries.key, binaries, account), home, disk, lock)
        with contextlib.suppress(OSError):  # not made yet
            server._check_folders()
        return server

    @classmethod
    def open(cls, settings: Settings, connect: Connect) -> Embedded:
        """Return the running server as one of its users, started if it was not.

        Arguments: `connect`, makes the connection that we use it through. Raises ServerNotFound or ServerError.
        """
        server = cls.locate(settings)
        if server._join(connect):
            return server
        patience = settings.connect_timeout * 3
        try:
            with locked(server.lock_path, patience):
                server._start(settings, connect)
        except TimeoutError:
            raise ServerError(
                f"another process has been starting the private server for {patience:g} s",
                f"It holds {server.lock_path}.",
                "Find it and end it, or set connect_timeout if the machine is that slow.",
            ) from None
        return server

    def _start(self, settings: Settings, connect: Connect) -> None:
        """Start the server, or join one that somebody else started; the caller holds the file lock."""
        now = Embedded.locate(settings)  # whoever had the lock before us may have gone to disk
        self.home, self.cluster = now.home, now.cluster
        if self._wait_for_running(settings, connect):
            return
        account = self.cluster.account
        self._prepare_folders(settings)
        binaries = self.cluster.binaries.readable_by(account, self.disk)
        self.cluster = _cluster(self.cluster.folder, binaries, account)
        try:
            self._launch(settings)
        except ServerError:
            if self.home == self.disk or settings.data_dir or (self.cluster.exists() and free_bytes(self.home) > _FULL):
                raise
            # The memory file system filled up after we looked, or is not for us: the disk will do.
            self.cluster.remove()
            self.home = self.disk
            self.cluster = _cluster(self.disk / self.cluster.folder.name, binaries, account)
            self._prepare_folders(settings)
            self._launch(settings)
        self.started = True
        if not self._join(connect):
            self.cluster.stop()
            raise self._refusal or ServerError(
                f"the private server in {self.cluster.folder} stopped at once", self.cluster.log_tail(), "Run again."
            )

    def _wait_for_running(self, settings: Settings, connect: Connect) -> bool:
        """Return whether a server runs here and we joined it; wait for one that is starting or stopping. Raises ServerError."""
        deadline = monotonic() + settings.connect_timeout
        while (pid := self.cluster.pid()) is not None:
            if self._join(connect):
                return True
            if monotonic() > deadline:
                if self._refusal is not None and type(self._refusal) in _AS_THEY_ARE:
                    raise self._refusal
                raise ServerError(
                    f"the private server in {self.cluster.folder} (process {pid}) does not answer",
                    f"{self._refusal or 'Its socket is not there.'}\nThe end of {self.cluster.log}:\n{self.cluster.log_tail()}",
                    "End that process; the next run starts a new server.",
                )
            time.sleep(0.01)
        return False

    def _launch(self, settings: Settings) -> None:
        there = self.cluster.is_sound()
        if not there:
            sweep(self.home, cache_folder(settings))
            self.cluster.init()
        self._process = self.cluster.start(settings.connect_timeout, renew=there)

    def _check_folders(self) -> None:
        """Raise ServerError unless all our folders are private, OSError if one is missing."""
        missing = None
        for folder in dict.fromkeys((self.home, self.cluster.folder, self.cluster.socket)):
            try:
                check_private(folder, self.cluster.account)
            except OSError as error:
                missing = error
        if missing is not None:
            raise missing

    def _prepare_folders(self, settings: Settings) -> None:
        for folder in dict.fromkeys((self.home, self.cluster.folder, self.cluster.socket)):
            private_folder(folder, self.cluster.account)

    def _join(self, connect: Connect) -> bool:
        """Become a user of the server if it runs; return whether we are one. Raises ServerError if the folders are not private."""
        try:
            self._check_folders()  # else whose server would it be?
        except OSError:
            return False
        if not (self.cluster.socket / ".s.PGSQL.5432").exists():
            return False
        connection = None
        try:
            connection = connect(self.dsn)
            row = connection.execute("SELECT pg_catalog.pg_try_advisory_lock_shared(%s)", [USERS_KEY]).fetchone()
            if row is None or not row[0]:
                # Whoever is about to stop the server holds it exclusively: then we wait, and are thrown out with the server, which
                # it leaves running when it sees us wait. Only one that is itself stopped lets us wait for longer.
                connection.execute(f"SET lock_timeout = {_STANDSTILL}")
                connection.execute("SELECT pg_catalog.pg_advisory_lock_shared(%s)", [USERS_KEY])
                connection.execute("RESET lock_timeout")
        except psycopg.errors.LockNotAvailable as error:
            assert connection is not None
            self._refusal = self._standstill(connection, error)
            connection.close()
            return False
        except (psycopg.OperationalError, ServerError) as error:
            if connection is not None:
                connection.close()
            self._refusal = error if isinstance(error, ServerError) else None
            return False
        self.connection = connection
        return True

    def _standstill(self, connection: psycopg.Connection[tuple[Any, ...]], error: psycopg.Error) -> ServerError:
        """Return the error for a lock that somebody holds who began to stop the server and does not go on."""
        rows: list[tuple[Any, ...]] = []
        with contextlib.suppress(psycopg.Error):
            rows = connection.execute(_STOPPER, [USERS_KEY >> 32, USERS_KEY & 0xFFFFFFFF]).fetchall()
        who = [f"It is held by {name or 'a session'} (server process {pid}, for {age} s)." for pid, name, age in rows]
        return ServerError(
            f"somebody has begun to stop the private server in {self.cluster.folder}, and does not go on",
            "\n".join([str(error).strip(), *who]),
            "Let that process go on (kill -CONT), or end it, and run again.",
        )

    def rejoin(self, connect: Connect) -> psycopg.Connection[tuple[Any, ...]]:
        """Become a user again after our connection was lost, and return the new one. Raises ServerError if the server is gone."""
        if not self._join(connect) or self.connection is None:
            if self._refusal is not None and type(self._refusal) in _AS_THEY_ARE:
                raise self._refusal
            what = "does not answer" if self.cluster.pid() is not None else "has stopped"
            raise ServerError(
                f"the private server in {self.cluster.folder} {what}",
                f"The end of {self.cluster.log}:\n{self.cluster.log_tail()}",
                "Run again: that starts a new one. Somebody killed it, or the machine has no memory left.",
            )
        return self.connection

    def stop(self, patience: float = 10.0) -> list[str]:
        """Stop the server, of which we are a user, within so many seconds, unless anybody else uses it; return who does.

        Then it runs on. Whoever comes while we look, waits for what we decide. Raises ServerError if it does not stop.
        """
        connection = self.connection
        if connection is None:
            return []
        for _ in range(3):
            if _is_last(connection):
                pid = self.cluster.pid()
                if not self.cluster.stop(patience):
                    raise ServerError(
                        f"the private server (process {pid}) does not stop", self.cluster.log_tail(), f"End it: kill -QUIT {pid}"
                    )
                return []
            if who := self.others():
                return who
        return ["sessions that come and go"]

    def leave(self, keep: bool = False) -> bool:
        """Stop being a user; stop the server if nobody else uses it, unless `keep`. Return whether it was stopped."""
        connection, self.connection = self.connection, None
        stopped = False
        if connection is None:
            return False
        try:
            if not keep and not self.is_kept() and not connection.closed and _is_last(connection):
                stopped = self.cluster.stop()
        except psycopg.OperationalError:
            pass  # stopped by somebody else in the meantime
        finally:
            connection.close()
        if self._process is not None:
            try:
                self._process.wait(10 if stopped or self.cluster.pid() is None else 0)
            except subprocess.TimeoutExpired:
                # The server outlives us on purpose; without this, Popen warns when it is collected.
                self._process.returncode = 0
            self._process = None
        return stopped

    def others(self) -> list[str]:
        """Return who else uses the server at this moment, in words: users of ours, who hold the lock, and any other session."""
        if self.connection is None:
            return []
        rows = self.connection.execute(_WHO, [USERS_KEY >> 32, USERS_KEY & 0xFFFFFFFF]).fetchall()
        return [
            f"{name or 'a session'} (server process {pid}, in database {database}, for {age} s)"
            + ("" if ours else ", not dbclone's")
            for pid, name, database, age, ours in rows
        ]

    def is_kept(self) -> bool:
        """Return whether somebody asked for the server to be left running (`dbclone server start`)."""
        return (self.cluster.folder / "keep").exists()

    def keep(self, on: bool) -> None:
        """Leave the server running from now on, or no longer."""
        path = self.cluster.folder / "keep"
        if on:
            open_own(path).close()
        else:
            path.unlink(missing_ok=True)


def _is_last(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Return whether nobody uses the server any more; then newcomers wait for us to stop it."""
    connection.execute("SELECT pg_catalog.pg_advisory_unlock_shared(%s)", [USERS_KEY])
    row = connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", [USERS_KEY]).fetchone()
    if row is None or not row[0]:
        return False  # a user who stays, or another one who leaves and decides for both of us
    for _ in range(_GOODBYES):
        row = connection.execute(_OTHERS, [USERS_KEY >> 32, USERS_KEY & 0xFFFFFFFF]).fetchone()
        sessions, waiting = row or (0, False)
        if not sessions or waiting:
            return not sessions
        time.sleep(0.01)  # a session ends a moment after its client has closed it
    return False


def _home(settings: Settings, cache: Path, account: Account, binaries: Binaries, disk: Path) -> Path:
    """Return the folder for clusters: where this one is already, else in memory if there is room, else on disk."""
    if settings.data_dir:
        return (settings.root / Path(settings.data_dir).expanduser()).absolute()
    if sys.platform != "linux":
        return disk
    memory = Path("/dev/shm") / _name(cache, account)
    for home in (memory, disk):
        if os.path.isfile(home / binaries.key / "data" / "PG_VERSION"):  # unlike is_file, False where we may not look
            return home
    return memory if free_bytes("/dev/shm") >= _ROOM and os.access("/dev/shm", os.W_OK | os.X_OK) else disk


def _cluster(folder: Path, binaries: Binaries, account: Account) -> Cluster:
    """Return the cluster in `folder`; its socket is there too unless the path is longer than the platform allows, or has a comma
    (which separates folders for the server and hosts for its clients) or what cannot be written in a URL."""
    socket, text = folder, str(folder)
    if len(os.fsencode(folder / ".s.PGSQL.5432")) > _SOCKET_LIMIT or "," in text or not text.isprintable():
        # Not the temporary folder of this process: TMPDIR may be another one for the next user of the same server.
        place = Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
        socket = place / f"dbclone-{os.getuid()}-{account.uid}-{digest(os.fsencode(folder))[:12]}"
    return Cluster(folder, socket, binaries, account)


def _name(cache: Path, account: Account) -> str:
    """Return a folder name that is one user's, one server account's and one cache folder's."""
    return f"dbclone-{os.getuid()}-{account.uid}-{digest(os.fsencode(cache))[:8]}"
