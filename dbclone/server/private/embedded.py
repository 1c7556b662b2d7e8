"""A server of our own: found or made, started or found running, and stopped by the last one to
leave.

Everything that differs between operating systems is below here; what leaves this package is a Dsn.

Who uses the server is known to the server itself: each user holds a shared advisory lock for as
long as it lives, and only who gets the same lock exclusively may stop it. A killed process holds no
lock, so nothing has to be cleaned up after it.
"""

from __future__ import annotations

import contextlib
import logging
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

from ...errors import OutOfConnections, ServerError
from ...process.clock import wait_until
from ...process.file_lock import file_lock
from ...schema.manifest import digest
from ...settings import Settings
from ..dsn import Dsn
from .account import cache_folder, server_account
from .binaries import Binaries, find
from .cluster import Cluster, Patience, free_bytes, sweep
from .folders import (
    Account,
    check_place,
    check_private,
    foreign,
    inside,
    open_own,
    open_private,
    private_folder,
    unusable,
)

__all__ = ["Embedded"]

log = logging.getLogger("dbclone")

USERS_KEY = 0x6462_636C_6F6E_6501  # "dbclone" and 1
_ROOM = 512 * 2**20  # below this much free memory, data go to disk
_FULL = 64 * 2**20  # below this much free memory, a server that does not start is started on disk
_NAMES = 9  # how many names for a cluster are tried before somebody has to clear up
_GOODBYES = (
    25  # hundredths of a second to wait for other sessions to end before the server is left to them
)
_OTHERS = """
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()),
       EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND classid::int8 = %s AND objid::int8 = %s)
"""
_STOPPER = """
SELECT a.pid, a.application_name, extract(epoch FROM clock_timestamp() - a.backend_start)::int
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock'
      AND l.classid::int8 = %s AND l.objid::int8 = %s
"""
# Refusals that say all there is to say; that nothing answers is ServerNotFound
_AS_THEY_ARE = (OutOfConnections, ServerError)
_STANDSTILL = 5000  # milliseconds
_WHO = """
SELECT a.pid, a.application_name, a.datname::text,
       extract(epoch FROM clock_timestamp() - a.backend_start)::int,
       a.application_name LIKE 'dbclone %%' OR EXISTS (
           SELECT FROM pg_catalog.pg_locks l
           WHERE l.pid = a.pid AND l.locktype = 'advisory'
                 AND l.classid::int8 = %s AND l.objid::int8 = %s)
FROM pg_catalog.pg_stat_activity a
WHERE a.backend_type = 'client backend' AND a.pid <> pg_catalog.pg_backend_pid()
ORDER BY a.backend_start, a.pid
"""
_GLANCE = 0.2  # seconds to wait for the lock before looking whether the server runs
_SOCKET_LIMIT = (
    100  # bytes of path; sockaddr_un holds 108 on Linux and 104 on macOS, minus ".s.PGSQL.5432"
)


Connect = Callable[[Dsn], "psycopg.Connection[tuple[Any, ...]]"]


@dataclass
class Embedded:
    """The private server of this user, cache folder and PostgreSQL version.

    `dsn` leads to its maintenance database; `connection` is the one that makes us a user of it,
    open from `open` to `leave`; `started` says whether this process started it; `notes` tell a
    person why the data are not where they would be.
    """

    cluster: Cluster
    home: Path
    disk: Path
    lock_path: Path
    notes: tuple[str, ...] = ()
    started: bool = False
    connection: psycopg.Connection[tuple[Any, ...]] | None = field(default=None, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    # Why we could not join the last time
    _refusal: ServerError | None = field(default=None, repr=False)

    @property
    def dsn(self) -> Dsn:
        return Dsn(
            (
                ("host", str(self.cluster.socket)),
                ("port", "5432"),
                ("user", "postgres"),
                ("dbname", "postgres"),
            )
        )

    @classmethod
    def locate(cls, settings: Settings) -> Embedded:
        """Return the server that `settings` mean, running or not, without starting anything.

        Raises ServerNotFound, and ServerError if somebody else may have prepared its folders: then
        nobody is led there.
        """
        account = server_account()
        binaries = find(settings)
        cache = cache_folder(settings)
        disk = Path("/var/tmp") / _name(cache, account) if account.other else cache / "server"
        lock = private_folder(cache / "locks", kind="locks") / f"server-{binaries.key}.lock"
        notes: list[str] = []
        home, folder = _place(settings, cache, account, binaries, disk, notes)
        server = cls(_cluster(folder, binaries, account), home, disk, lock, tuple(notes))
        with contextlib.suppress(OSError):  # not made yet
            server._check_folders()
        return server

    @classmethod
    def open(cls, settings: Settings, connect: Connect) -> Embedded:
        """Return the running server as one of its users, started if it was not.

        Arguments: `connect`, makes the connection that we use it through. Raises ServerNotFound or
        ServerError.
        """
        server = cls.locate(settings)
        for note in server.notes:
            log.warning("%s", note)
        if server._join(connect):
            return server
        if settings.looking and settings.of_repository("binaries"):
            raise settings.error(
                "binaries",
                "the private server does not run, and this command starts no program that a"
                " repository names",
                "Start it: python -m dbclone server start",
            )
        seconds = settings.connect_timeout * 3
        patience = Patience(seconds, settings.build_timeout)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(file_lock(server.lock_path, min(_GLANCE, seconds)))
                    break
                except TimeoutError:
                    pass
                except OSError as error:
                    raise unusable(server.lock_path, error) from None
                server._move(cls.locate(settings))  # whoever has the lock may have gone to disk
                # Not one after the other when the lock is free, if there are many of us
                if server._join(connect):
                    return server
                if patience.is_over(server.cluster):
                    raise ServerError(
                        f"another process has been starting the private server for {seconds:g} s",
                        f"It holds {server.lock_path}, and nothing has changed in"
                        f" {server.cluster.folder} since.",
                        "Find it and end it, or set connect_timeout if the machine is that slow.",
                    )
            try:
                server._start(settings, connect)
            except OSError as error:
                # Which is relative if a descriptor was used
                name = error.filename if isinstance(error.filename, str) else ""
                raise unusable(server.cluster.folder / name, error) from None
        return server

    def _move(self, now: Embedded) -> None:
        self.home, self.cluster = now.home, now.cluster

    def _start(self, settings: Settings, connect: Connect) -> None:
        """Start the server, or join one that somebody else has started; the caller has the lock."""
        # Whoever had the lock before us may have gone to disk
        self._move(Embedded.locate(settings))
        if self._wait_for_running(settings, connect):
            return
        account = self.cluster.account
        self._prepare_folders(settings)
        binaries = self.cluster.binaries.readable_by(account, self.disk)
        self.cluster = _cluster(self.cluster.folder, binaries, account)
        try:
            self._launch(settings)
        except ServerError:
            if (
                self.home == self.disk
                or settings.data_dir
                or (self.cluster.exists() and free_bytes(self.home) > _FULL)
            ):
                raise
            # The memory file system filled up after we looked, or is not for us: the disk will do.
            self.cluster.remove()
            self.home = self.disk
            self.cluster = _cluster(_free_name(self.disk, binaries, account, []), binaries, account)
            self._prepare_folders(settings)
            self._launch(settings)
        self.started = True
        if not self._join(connect):
            self.cluster.stop()
            raise self._refusal or ServerError(
                f"the private server in {self.cluster.folder} stopped at once",
                self.cluster.log_tail(),
                "Run again.",
            )

    def _wait_for_running(self, settings: Settings, connect: Connect) -> bool:
        """Return whether a server runs here and we joined it; wait for one that is starting or
        stopping. Raises ServerError."""

        def state() -> str:
            if self.cluster.pid() is None:
                return "gone"
            return "joined" if self._join(connect) else ""

        if found := wait_until(state, settings.connect_timeout):
            return found == "joined"
        if self._refusal is not None and type(self._refusal) in _AS_THEY_ARE:
            raise self._refusal
        where = f"{self.cluster.folder} (process {self.cluster.pid()})"
        raise ServerError(
            f"the private server in {where} does not answer",
            f"{self._refusal or 'Its socket is not there.'}\nThe end of"
            f" {self.cluster.log}:\n{self.cluster.log_tail()}",
            "End that process; the next run starts a new server.",
        )

    def _launch(self, settings: Settings) -> None:
        there = self.cluster.is_sound()
        if not there:
            if self.cluster.exists():
                log.warning(
                    "the data in %s were not shut down cleanly (a full disk, a crash) and are made"
                    " anew: templates and what was kept there are gone",
                    self.cluster.folder,
                )
            sweep(self.home, cache_folder(settings), self.cluster.account)
            self.cluster.init(settings.build_timeout)
        self._process = self.cluster.start(settings.connect_timeout, renew=there)

    def _check_folders(self) -> None:
        """Raise ServerError unless all our folders are private, OSError if one is missing."""
        missing = None
        for folder in dict.fromkeys((self.home, self.cluster.folder, self.cluster.socket)):
            try:
                if folder == self.home and self._is_in_a_folder_of_the_user:
                    check_place(folder, self.cluster.account)
                else:
                    check_private(folder, self.cluster.account)
            except OSError as error:
                missing = error
        if missing is not None:
            raise missing

    @property
    def _is_in_a_folder_of_the_user(self) -> bool:
        return self.home != self.disk and self.home.parent != Path("/dev/shm")

    def _prepare_folders(self, settings: Settings) -> None:
        account, cache = self.cluster.account, str(cache_folder(settings))
        if not (self._is_in_a_folder_of_the_user and self.home.is_dir()):
            private_folder(self.home, account, "home", cache=cache)
        private_folder(
            self.cluster.folder, account, "cluster", cache=cache, lock=str(self.lock_path)
        )
        if self.cluster.socket != self.cluster.folder:
            private_folder(self.cluster.socket, account, "socket", cache=cache)

    def _join(self, connect: Connect) -> bool:
        """Become a user of the server if it runs; return whether we are one. Raises ServerError if
        the folders are not private."""
        try:
            self._check_folders()  # else whose server would it be?
        except OSError:
            return False
        if not (self.cluster.socket / ".s.PGSQL.5432").exists():
            return False
        connection = None
        try:
            connection = connect(self.dsn)
            row = connection.execute(
                "SELECT pg_catalog.pg_try_advisory_lock_shared(%s)", [USERS_KEY]
            ).fetchone()
            if row is None or not row[0]:
                # Whoever is about to stop the server holds it exclusively: then we wait, and are
                # thrown out with the server, which it leaves running when it sees us wait. Only one
                # that is itself stopped lets us wait for longer.
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

    def _standstill(
        self, connection: psycopg.Connection[tuple[Any, ...]], error: psycopg.Error
    ) -> ServerError:
        """Return the error for a lock that somebody holds who began to stop the server and does not
        go on."""
        rows: list[tuple[Any, ...]] = []
        with contextlib.suppress(psycopg.Error):
            rows = connection.execute(
                _STOPPER, [USERS_KEY >> 32, USERS_KEY & 0xFFFFFFFF]
            ).fetchall()
        who = [
            f"It is held by {name or 'a session'} (server process {pid}, for {age} s)."
            for pid, name, age in rows
        ]
        return ServerError(
            f"somebody has begun to stop the private server in {self.cluster.folder}, and"
            f" does not go on",
            "\n".join([str(error).strip(), *who]),
            "Let that process go on (kill -CONT), or end it, and run again.",
        )

    def rejoin(self, connect: Connect) -> psycopg.Connection[tuple[Any, ...]]:
        """Become a user again after our connection was lost, and return the new one. Raises
        ServerError if the server is gone."""
        if not self._join(connect) or self.connection is None:
            if self._refusal is not None and type(self._refusal) in _AS_THEY_ARE:
                raise self._refusal
            what = "does not answer" if self.cluster.pid() is not None else "has stopped"
            raise ServerError(
                f"the private server in {self.cluster.folder} {what}",
                f"The end of {self.cluster.log}:\n{self.cluster.log_tail()}",
                "Run again: that starts a new one. Somebody killed it, or the machine has no"
                " memory left.",
            )
        return self.connection

    def stop(self, patience: float = 10.0) -> list[str]:
        """Stop the server, of which we are a user, within so many seconds, unless anybody else uses
        it; return who does.

        Then it runs on. Whoever comes while we look, waits for what we decide. Raises ServerError
        if it does not stop.
        """
        connection = self.connection
        if connection is None:
            return []
        for _ in range(3):
            if _is_last(connection):
                pid = self.cluster.pid()
                if not self.cluster.stop(patience):
                    raise ServerError(
                        f"the private server (process {pid}) does not stop",
                        self.cluster.log_tail(),
                        f"End it: kill -QUIT {pid}",
                    )
                return []
            if who := self.others():
                return who
        return ["sessions that come and go"]

    def leave(self, keep: bool = False) -> bool:
        """Stop being a user; stop the server if nobody else uses it, unless `keep`. Return whether
        it was stopped."""
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
        """Return who else uses the server at this moment, in words: users of ours, who hold the
        lock, and any other session."""
        if self.connection is None:
            return []
        rows = self.connection.execute(_WHO, [USERS_KEY >> 32, USERS_KEY & 0xFFFFFFFF]).fetchall()
        return [
            f"{name or 'a session'} (server process {pid}, in database {database}, for {age} s)"
            + ("" if ours else ", not dbclone's")
            for pid, name, database, age, ours in rows
        ]

    def is_kept(self) -> bool:
        """Return whether somebody wants the server to be left running (`dbclone server start`)."""
        return os.path.lexists(self.cluster.folder / "keep")

    def keep(self, on: bool) -> None:
        """Leave the server running from now on, or no longer. Raises ServerError."""
        if not on and not self.is_kept():
            return
        try:
            with open_private(self.cluster.folder, self.cluster.account) as folder:
                if on:
                    open_own("keep", folder, self.cluster.folder / "keep").close()
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink("keep", dir_fd=folder)
        except OSError as error:
            if on or not isinstance(error, FileNotFoundError):
                raise unusable(self.cluster.folder / "keep", error) from None


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


def _place(
    settings: Settings,
    cache: Path,
    account: Account,
    binaries: Binaries,
    disk: Path,
    notes: list[str],
) -> tuple[Path, Path]:
    """Return the folder for clusters and that of ours in it: where it is already, else in memory if
    there is room, else on disk.

    Arguments: `notes`, gets why it is elsewhere than it would be. Raises ServerError if what is
    there is not to be used.
    """
    if settings.data_dir:
        home = settings.path("data_dir")
        with contextlib.suppress(FileNotFoundError):
            check_place(home, account)
            if home.is_symlink():
                check_private(home, account)
        return home, _free_name(home, binaries, account, notes)
    if sys.platform != "linux":
        return disk, _free_name(disk, binaries, account, notes)
    passed: list[str] = []
    memory = Path("/dev/shm") / _name(cache, account)
    try:
        with contextlib.suppress(FileNotFoundError):
            check_private(memory, account)
        in_memory = _free_name(memory, binaries, account, passed)
    except (ServerError, OSError) as error:
        why = error.message if isinstance(error, ServerError) else f"{memory}: {error.strerror}"
        notes.append(f"the private server's data are in {disk} and not in memory: {why}")
        return disk, _free_name(disk, binaries, account, notes)
    if os.path.isfile(in_memory / "data" / "PG_VERSION"):
        notes += passed
        return memory, in_memory
    on_disk = _free_name(disk, binaries, account, notes)
    if os.path.isfile(on_disk / "data" / "PG_VERSION"):
        return disk, on_disk
    if free_bytes("/dev/shm") >= _ROOM and os.access("/dev/shm", os.W_OK | os.X_OK):
        notes[:] = passed
        return memory, in_memory
    return disk, on_disk


def _free_name(home: Path, binaries: Binaries, account: Account, notes: list[str]) -> Path:
    """Return the folder in `home` that is our cluster of these binaries, or a name that nothing has
    yet.

    What has a name of ours and is not proved to be ours is passed by and left alone. Raises
    ServerError if it is not private.
    """
    passed: list[str] = []
    for number in range(1, _NAMES + 1):
        path = home / (f"dbclone-{binaries.key}" + (f".{number}" if number > 1 else ""))
        try:
            with open_private(path, account) as folder:
                problem = foreign(folder, path, "cluster")
                if not problem:
                    problem = _foreign_data(folder, path / "data")
        except (FileNotFoundError, NotADirectoryError):
            problem = ""
        except OSError as error:
            raise unusable(path, error) from None
        if not problem:
            notes += passed
            return path
        passed.append(f"{path} is left alone and not used: {problem}")
    raise ServerError(
        f"there is no name left for the private server's data in {home}",
        "\n".join(passed),
        "Move or remove those that you know, or set data_dir to another folder.",
    )


def _foreign_data(folder: int, path: Path) -> str:
    """Return in words why the data in an open cluster's folder are not proved to be ours; empty if
    they are, or there are none."""
    if "data" not in os.listdir(folder):
        return ""
    try:
        with inside(folder, "data") as data:
            problem = foreign(data, path, "data")
    except OSError:
        problem = "it is no folder of its own"
    return f"data in it: {problem}" if problem else ""


def _cluster(folder: Path, binaries: Binaries, account: Account) -> Cluster:
    """Return the cluster in `folder`; its socket is there too unless the path is longer than the
    platform allows, or has a comma (which separates folders for the server and hosts for its
    clients) or what cannot be written in a URL."""
    socket, text = folder, str(folder)
    if (
        len(os.fsencode(folder / ".s.PGSQL.5432")) > _SOCKET_LIMIT
        or "," in text
        or not text.isprintable()
    ):
        # Not the temporary folder of this process: TMPDIR may be another one for the next user of
        # the same server.
        place = (
            Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
        )
        socket = place / f"dbclone-{os.getuid()}-{account.uid}-{digest(os.fsencode(folder))[:12]}"
    return Cluster(folder, socket, binaries, account)


def _name(cache: Path, account: Account) -> str:
    """Return a folder name that is one user's, one server account's and one cache folder's."""
    return f"dbclone-{os.getuid()}-{account.uid}-{digest(os.fsencode(cache))[:8]}"
