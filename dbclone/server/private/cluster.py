"""One data directory: made by initdb, started from an argument list, told from a dead or broken
one, and thrown away.

The data are disposable. A cluster that did not shut down cleanly is replaced, because without fsync
nobody knows what is in it. Only data with our mark in them are: see `folders`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ServerError
from ...process.clock import monotonic, wait_until, wall
from ...process.file_lock import file_lock
from .account import own_name
from .binaries import Binaries
from .folders import (  # fmt: skip
    MARK,
    Account,
    facts_of,
    foreign,
    inside,
    mark,
    open_own,
    open_private,
    own_uid,
    private_folder,
    reach_folder,
    read_own,
    remove,
)

_SHUT_DOWN = 1  # DB_SHUTDOWNED in src/include/catalog/pg_control.h
# https://www.postgresql.org/docs/current/non-durability.html, and settings that tests profit from.
_THROW_AWAY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "512MB",
    "max_connections": "400",
    "max_locks_per_transaction": "256",
    # A session that looks at 1,000 tables would open and close their files each time.
    "max_files_per_process": "10000",
    "max_prepared_transactions": "64",
    "client_connection_check_interval": "1s",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}
_NEEDED = 64 * 2**20  # bytes that the data of a new server take, its log included
_OLD = re.compile(r"data\.[0-9a-f]{8}\.old")  # data that were thrown away and are not gone yet
_UNFINISHED = re.compile(r"initdb\.[0-9a-f]{8}")  # where an initdb is at work, or was killed
_OURS = re.compile(
    rf"data|log|keep|\.s\.PGSQL\.5432(\.lock)?|{re.escape(MARK)}|{_OLD.pattern}|{_UNFINISHED.pattern}"
)
_INITDB_TIMEOUT = 600.0  # seconds


class Patience:
    """How long to wait for somebody who makes progress: `seconds` since the last sign of it, and
    `most` altogether."""

    def __init__(self, seconds: float, most: float) -> None:
        self._seconds, self._end = seconds, monotonic() + max(most, seconds)
        self._last = self._look = monotonic()
        self._state: tuple[int, ...] | None = None

    def is_over(self, cluster: Cluster) -> bool:
        """Return whether it is over; look for progress at most twice a second."""
        now = monotonic()
        if now > self._end:
            return True
        if self._state is None or now > self._look + min(0.5, self._seconds):
            state, self._look = cluster.progress(), now
            if self._state is not None and state != self._state:
                self._last = now
            self._state = state
        return now > self._last + self._seconds


@dataclass(frozen=True)
class Cluster:
    """A data directory in `folder`, run with `binaries` as `account`,
    reached through the socket in `socket`."""

    folder: Path
    socket: Path
    binaries: Binaries
    account: Account

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def exists(self) -> bool:
        """Return whether initdb has finished here."""
        return (self.data / "PG_VERSION").is_file()

    def pid(self) -> int | None:
        """Return the process id of the running server, or None. A stale postmaster.pid, also one
        whose number now belongs to another program, is not a running server; nor is a program of
        another account, whatever the account writes there."""
        try:
            with self._opened("data") as data:
                pid = int(read_own("postmaster.pid", folder=data).splitlines()[0])
                if sys.platform == "linux":
                    there = os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.fstat(data))
                    return (
                        pid
                        if there and os.stat(f"/proc/{pid}").st_uid == self.account.uid
                        else None
                    )
        except (OSError, ServerError, ValueError, IndexError):
            return None
        words = ["ps", "-ww", "-o", "uid=,command=", "-p", str(pid)]
        try:
            shown = subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.split(
                None, 1
            )
        except subprocess.TimeoutExpired:
            return None
        return (
            pid
            if len(shown) == 2 and shown[0] == str(self.account.uid) and str(self.data) in shown[1]
            else None
        )

    def is_ready(self) -> bool:
        """Return whether a running server says that it accepts connections (the last line of
        postmaster.pid)."""
        try:
            with self._opened("data") as data:
                return read_own("postmaster.pid", folder=data).splitlines()[-1].strip() == b"ready"
        except (OSError, ServerError, IndexError):
            return False

    def is_sound(self) -> bool:
        """Return whether the stopped cluster was shut down cleanly by a
        server of this major version."""
        try:
            with self._opened("data") as data:
                with inside(data, "global") as control:
                    state = struct.unpack("=QIIi", read_own("pg_control", folder=control)[:20])[3]
                version = read_own("PG_VERSION", folder=data).decode(errors="replace").strip()
                running = "postmaster.pid" in os.listdir(data)
        except (OSError, ServerError, ValueError, struct.error):
            return False
        return bool(state == _SHUT_DOWN) and version == str(self.binaries.major) and not running

    def progress(self) -> tuple[int, ...]:
        """Return what changes while somebody makes or starts the server: how many files there are,
        their size and last change."""
        count = size = last = 0
        with contextlib.suppress(OSError, ServerError), self._opened() as folder:
            for _, _, files, found in os.fwalk(".", dir_fd=folder):
                for name in (".", *files):
                    with contextlib.suppress(OSError):
                        state = os.stat(name, dir_fd=found, follow_symlinks=False)
                        count, size, last = (
                            count + 1,
                            size + state.st_size,
                            max(last, state.st_mtime_ns),
                        )
        return count, size, last

    @contextlib.contextmanager
    def _opened(self, *names: str) -> Iterator[int]:
        """Give a descriptor of the folder, or of one in it. Raises ServerError or OSError."""
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(open_private(self.folder, self.account))
            for name in names:
                found = stack.enter_context(inside(found, name))
            yield found

    def remove(self) -> None:
        """Throw the data away, and what an initdb left that did not finish. Raises ServerError if
        the data are not ours."""
        with self._opened() as folder:
            if "data" in os.listdir(folder):
                try:
                    with inside(folder, "data") as data:
                        problem = foreign(data, self.data, "data")
                except OSError:
                    problem = "it is no folder"
                if problem:
                    raise ServerError(
                        f"{self.data} is not a data directory of dbclone, and is left alone:"
                        f" {problem}",
                        "A private server's data would be in its place.",
                        "Move it elsewhere, or set data_dir to another folder.",
                    )
                # Renamed first: a backend that outlives a killed postmaster may still write there:
                # then it could not be emptied.
                os.rename(
                    "data", f"data.{secrets.token_hex(4)}.old", src_dir_fd=folder, dst_dir_fd=folder
                )
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    if _OLD.fullmatch(name):
                        remove(folder, name, self.data, "data")
                    elif _UNFINISHED.fullmatch(name):
                        remove(folder, name, self.folder / name, "initdb")

    def init(self, timeout: float = _INITDB_TIMEOUT) -> None:
        """Run initdb, for `timeout` seconds at most, in a folder that is not the cluster's data
        until it has finished.

        Raises ServerError, and OSError.
        """
        self.remove()
        # A folder of its own: an initdb outlives its killed parent, and then removes what it made
        # when it fails.
        place = private_folder(
            self.folder / f"initdb.{secrets.token_hex(4)}", self.account, "initdb"
        )
        try:
            self._run_initdb(place / "data", timeout)
            with (
                self._opened() as folder,
                inside(folder, place.name) as made,
                inside(made, "data") as data,
            ):
                self._admit(data, place / "data")
                mark(data, self.data, "data")
                os.rename("data", "data", src_dir_fd=made, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(OSError), self._opened() as folder:
                remove(folder, place.name, place, "initdb")

    def _run_initdb(self, new: Path, timeout: float) -> None:
        command: list[str | Path] = [
            self.binaries.folder / "initdb",
            "-D",
            new,
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--no-sync",
            "--no-instructions",
        ]
        command += [
            f"--auth-local={'peer' if self.binaries.major >= 16 else 'trust'}",
            "--auth-host=reject",
        ]
        if self.binaries.major >= 16:
            command += ["--set", "dynamic_shared_memory_type=mmap"]  # /dev/shm may be full
        if self.binaries.major >= 17:
            locales = [["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
        else:
            locales = [["--locale=C.UTF-8"], ["--locale=C"]]
        said = ""
        for locale in locales:
            try:
                done = subprocess.run(
                    [*command, *locale],
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=timeout,
                    **self._process,
                )
            except subprocess.TimeoutExpired:
                said = f"It has not finished within {timeout:g} s."
                break
            if done.returncode == 0:
                return
            said = (done.stderr or done.stdout).strip()[-2000:]
        free = free_bytes(self.folder)
        full = "No space left" in said or "Check free disk space" in said or free < _NEEDED // 4
        raise ServerError(
            f"initdb failed in {self.folder}"
            + (
                f": no space is left there, {free / 2**20:.0f} MB are free and"
                f" {_NEEDED / 2**20:.0f} MB needed"
                if full
                else ""
            ),
            said,
            f"The binaries are {self.binaries.folder} ({self.binaries.source})."
            + (" Make room there, or set data_dir" if full else " Set binaries or data_dir")
            + ", or set url to a running server.",
        )

    def _admit(self, data: int, shown: Path) -> None:
        """Write who may connect into new data, of which we have a descriptor."""
        if self.binaries.major < 16:
            return
        # The folder admits its owner only; this admits the same person by name, so that root may
        # use a server run by another account. "all" lets tests connect as roles they made. It
        # exists since PostgreSQL 16; before, the folder's mode guards.
        names = sorted({own_name(), self.account.name})
        for file, text in (
            ("pg_hba.conf", "local all all peer map=dbclone\n"),
            ("pg_ident.conf", "".join(f'dbclone "{name}" all\n' for name in names)),
        ):
            with open_own(file, data, shown / file) as opened_file:
                opened_file.write(text.encode())

    def start(self, timeout: float, renew: bool = False) -> subprocess.Popen[bytes]:
        """Start the server and return its process once it accepts connections, within `timeout`
        seconds.

        Arguments: `renew`, replace data that look sound but that the server does not start with (a
        file is missing or broken). The caller knows that no server runs here. Raises ServerError.
        """
        with open_private(self.socket, self.account) as folder:
            for left in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
                # Left by a killed server: the lock would stop the new one if the old number now
                # belongs to another program of ours.
                with contextlib.suppress(OSError):
                    os.unlink(left, dir_fd=folder)
        settings = {
            **_THROW_AWAY,
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.socket),
            "unix_socket_permissions": "0700",
        }
        if self.binaries.major >= 18:
            settings["io_method"] = "sync"
        # Below data in memory it goes away with them, whatever killed the server; and a container's
        # 64 MB of /dev/shm cannot hold what a parallel query shares.
        below = sys.platform == "linux" and (
            self.folder.is_relative_to("/dev/shm") or free_bytes("/dev/shm") < 128 * 2**20
        )
        settings["dynamic_shared_memory_type"] = "mmap" if below else "posix"
        command = [str(self.binaries.folder / "postgres"), "-D", str(self.data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._opened() as folder, open_own("log", folder, self.log) as log:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._process,
            )
        patience = Patience(timeout, 10 * timeout)
        while not self.is_ready():
            if renew and server.poll() is not None and self.pid() is None:
                self.init()
                return self.start(timeout)
            if server.poll() is not None or patience.is_over(self):
                what = (
                    "did not start"
                    if server.poll() is not None
                    else f"did not accept connections within {timeout:g} s"
                )
                if server.poll() is None:
                    server.kill()
                    server.wait()
                raise ServerError(
                    f"the private server in {self.folder} {what}",
                    f"The end of {self.log}:\n{self.log_tail()}",
                    "Set connect_timeout if the machine is slow, data_dir if the place is"
                    " unsuitable, or url to a running server.",
                )
            time.sleep(0.002)
        return server

    def stop(self, timeout: float = 10.0) -> bool:
        """Ask the server for a fast shutdown and wait up to `timeout` seconds;
        return whether it is gone."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # stopped by somebody else since
                os.kill(pid, signal.SIGINT)
        return wait_until(lambda: self.pid() is None, timeout, 0.002)

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            with self._opened() as folder:
                return "\n".join(
                    read_own("log", folder=folder).decode(errors="replace").splitlines()[-12:]
                )
        except OSError as error:
            return f"(cannot be read: {error.strerror})"
        except ServerError as error:
            return f"(cannot be read: {error.message})"

    @property
    def _process(self) -> dict[str, Any]:
        """How programs of the server are run: as its account, from a folder that anybody can enter,
        in a neutral language.

        Another account can read the environment of its processes, so it gets nothing of ours but
        what programs need to run.
        """
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
        if self.account.other:
            environ = {
                k: v
                for k, v in environ.items()
                if k in ("PATH", "TZ", "TZDIR", "TMPDIR") or k.startswith(("LD_", "DYLD_"))
            }
        return {"cwd": "/", "env": {**environ, "LC_ALL": "C"}, **self.account.popen}


def free_bytes(path: str | Path) -> int:
    """Return the free bytes of a file system, 0 if there is none."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def sweep(home: Path, cache: Path, account: Account) -> None:
    """Drop what nobody will come back for: stopped clusters of other versions here that are a month
    old, and the homes in memory of cache folders that no longer exist. What is not proved to be
    ours, and a running server, are left alone.

    Arguments: `home`, the folder with clusters, which may be a user's own; `cache`, ours;
    `account`, which runs the servers.
    """
    with contextlib.suppress(OSError), reach_folder(home, account) as folder:
        stopped = (
            []
            if any(running for _, _, running in _clusters(folder, home, account))
            else list(_clusters(folder, home, account))
        )
        for name, facts, _ in stopped:
            with contextlib.suppress(OSError, TimeoutError), contextlib.ExitStack() as stack:
                if (lock := Path(str(facts.get("lock", "")))).parent == cache / "locks":
                    stack.enter_context(file_lock(lock, 0))  # else somebody is about to start it
                if (
                    wall() - os.stat(f"{name}/data", dir_fd=folder, follow_symlinks=False).st_mtime
                    > 30 * 86400
                ):
                    remove(folder, name, home / name, "cluster")
    for place in Path("/dev/shm").glob(f"dbclone-{own_uid()}-*") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError, ServerError):
            with open_private(place, account) as folder:
                lost = facts_of(folder).get("cache")
                if (
                    place == home
                    or foreign(folder, place, "home")
                    or not lost
                    or os.path.lexists(lost)
                ):
                    continue
                found = {name: running for name, _, running in _clusters(folder, place, account)}
                if any(found.values()) or set(os.listdir(folder)) - set(found) - {MARK}:
                    continue
            with reach_folder(place.parent, account) as memory:
                remove(memory, place.name, place, "home")


def _clusters(
    home: int, path: Path, account: Account
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield (name, facts, whether a server runs there or was killed) of the clusters in an open
    folder that are proved ours, their data too, and in which a user has put nothing."""
    for name in os.listdir(home):
        with contextlib.suppress(OSError), inside(home, name) as folder:
            ours = os.fstat(folder).st_uid == account.uid and not foreign(
                folder, path / name, "cluster"
            )
            if not ours or not all(map(_OURS.fullmatch, names := os.listdir(folder))):
                continue
            if "data" not in names:
                yield name, facts_of(folder), False
                continue
            with inside(folder, "data") as data:
                if not foreign(data, path / name / "data", "data"):
                    yield name, facts_of(folder), "postmaster.pid" in os.listdir(data)
