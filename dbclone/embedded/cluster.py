"""One data directory: made by initdb, started from an argument list, told from a dead or broken one, and thrown away.

The data are disposable. A cluster that did not shut down cleanly is replaced, because without fsync nobody knows what is in it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clock import monotonic, wall
from ..errors import ServerError
from .account import Account, open_own, own_name, read_own
from .binaries import Binaries

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
    "max_files_per_process": "10000",  # a session that looks at 1,000 tables would open and close their files each time
    "max_prepared_transactions": "64",
    "client_connection_check_interval": "1s",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}


@dataclass(frozen=True)
class Cluster:
    """A data directory in `folder`, run with `binaries` as `account`, reached through the socket in `socket`."""

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
        """Return the process id of the running server, or None. A stale postmaster.pid, also one whose number now belongs to
        another program, is not a running server."""
        try:
            pid = int(read_own(self.data / "postmaster.pid").splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        if sys.platform == "linux":
            try:
                return pid if os.path.samefile(os.readlink(f"/proc/{pid}/cwd"), self.data) else None
            except OSError:
                return None
        shown = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout
        return pid if str(self.data) in shown else None

    def is_ready(self) -> bool:
        """Return whether a running server says that it accepts connections (the last line of postmaster.pid)."""
        try:
            return read_own(self.data / "postmaster.pid").splitlines()[-1].strip() == b"ready"
        except (OSError, IndexError):
            return False

    def is_sound(self) -> bool:
        """Return whether the stopped cluster was shut down cleanly by a server of this major version."""
        try:
            state = struct.unpack("=QIIi", read_own(self.data / "global" / "pg_control")[:20])[3]
            version = read_own(self.data / "PG_VERSION").decode(errors="replace").strip()
        except (OSError, ValueError, struct.error):
            return False
        return bool(state == _SHUT_DOWN) and version == str(self.binaries.major) and not (self.data / "postmaster.pid").exists()

    def remove(self) -> None:
        """Throw the data away, and what an initdb left that did not finish."""
        # Renamed first: a backend that outlives a killed postmaster may still write there, and then it could not be emptied.
        with contextlib.suppress(OSError):
            self.data.rename(self.folder / f"data.{secrets.token_hex(4)}.old")
        for leftover in self.folder.glob("data*.???"):
            shutil.rmtree(leftover, ignore_errors=True)

    def init(self) -> None:
        """Run initdb, under a name that is not the cluster's until it has finished. Raises ServerError."""
        self.remove()
        # A name of its own: an initdb outlives its killed parent, and then removes the folder of its name when it fails.
        new = self.folder / f"data.{secrets.token_hex(4)}.new"
        method = "peer" if self.binaries.major >= 16 else "trust"
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
        command += [f"--auth-local={method}", "--auth-host=reject"]
        if self.binaries.major >= 16:
            command += ["--set", "dynamic_shared_memory_type=mmap"]  # /dev/shm may be full
        if self.binaries.major >= 17:
            locales = [["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]]
        else:
            locales = [["--locale=C.UTF-8"], ["--locale=C"]]
        for locale in locales:
            done = subprocess.run([*command, *locale], capture_output=True, text=True, errors="replace", **self._process)
            if done.returncode == 0:
                break
            shutil.rmtree(new, ignore_errors=True)
        else:
            raise ServerError(
                f"initdb failed in {self.folder}",
                (done.stderr or done.stdout).strip()[-2000:],
                f"The binaries are {self.binaries.folder} ({self.binaries.source})."
                " Set binaries or data_dir, or set url to a running server.",
            )
        if method == "peer":
            # The folder admits its owner only; this admits the same person by name, so that root may use a server run by another
            # account. "all" lets tests connect as roles they made. It exists since PostgreSQL 16; before, the folder's mode guards.
            names = sorted({own_name(), self.account.name})
            for file, text in (
                ("pg_hba.conf", "local all all peer map=dbclone\n"),
                ("pg_ident.conf", "".join(f'dbclone "{name}" all\n' for name in names)),
            ):
                with open_own(new / file) as opened:
                    opened.write(text.encode())
        new.rename(self.data)

    def start(self, timeout: float, renew: bool = False) -> subprocess.Popen[bytes]:
        """Start the server and return its process once it accepts connections, within `timeout` seconds.

        Arguments: `renew`, replace data that look sound but that the server does not start with (a file is missing or broken). The
        caller knows that no server runs here. Raises ServerError.
        """
        for left in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            # Left by a killed server: the lock would stop the new one if the old number now belongs to another program of ours.
            with contextlib.suppress(OSError):
                (self.socket / left).unlink()
        settings = {
            **_THROW_AWAY,
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self.socket),
            "unix_socket_permissions": "0700",
        }
        if self.binaries.major >= 18:
            settings["io_method"] = "sync"
        # Below data in memory it goes away with them, whatever killed the server; and a container's 64 MB of /dev/shm cannot hold
        # what a parallel query shares.
        below = sys.platform == "linux" and (self.folder.is_relative_to("/dev/shm") or free_bytes("/dev/shm") < 128 * 2**20)
        settings["dynamic_shared_memory_type"] = "mmap" if below else "posix"
        command = [str(self.binaries.folder / "postgres"), "-D", str(self.data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open_own(self.log) as log:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **self._process
            )
        deadline = monotonic() + timeout
        while not self.is_ready():
            if renew and server.poll() is not None and self.pid() is None:
                self.init()
                return self.start(timeout)
            if server.poll() is not None or monotonic() > deadline:
                what = "did not start" if server.poll() is not None else f"did not accept connections within {timeout:g} s"
                if server.poll() is None:
                    server.kill()
                    server.wait()
                raise ServerError(
                    f"the private server in {self.folder} {what}",
                    f"The end of {self.log}:\n{self.log_tail()}",
                    "Set connect_timeout if the machine is slow, data_dir if the place is unsuitable, or url to a running server.",
                )
            time.sleep(0.002)
        return server

    def stop(self, timeout: float = 10.0) -> bool:
        """Ask the server for a fast shutdown and wait up to `timeout` seconds; return whether it is gone."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # stopped by somebody else since
                os.kill(pid, signal.SIGINT)
        deadline = monotonic() + timeout
        while self.pid() is not None:
            if monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            return "\n".join(read_own(self.log).decode(errors="replace").splitlines()[-12:])
        except OSError as error:
            return f"(cannot be read: {error.strerror})"

    @property
    def _process(self) -> dict[str, Any]:
        """How programs of the server are run: as its account, from a folder it can enter, in a neutral language.

        Another account can read the environment of its processes, so it gets nothing of ours but what programs need to run.
        """
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
        if self.account.other:
            environ = {k: v for k, v in environ.items() if k in ("PATH", "TZ", "TZDIR", "TMPDIR") or k.startswith(("LD_", "DYLD_"))}
        return {"cwd": self.folder, "env": {**environ, "LC_ALL": "C"}, **self.account.popen}


def free_bytes(path: str | Path) -> int:
    """Return the free bytes of a file system, 0 if there is none."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def sweep(home: Path, cache: Path) -> None:
    """Drop what nobody will come back for: stopped clusters of other versions here that are a month old, and the homes in memory
    of cache folders that no longer exist. A running server is left alone."""
    origin = home / "origin"
    with contextlib.suppress(OSError, ServerError), open_own(origin) as file:
        file.write(os.fsencode(cache))
    homes = [home, *(Path("/dev/shm").glob(f"dbclone-{os.getuid()}-*") if sys.platform == "linux" else ())]
    for place in homes:
        with contextlib.suppress(OSError):
            if place.lstat().st_uid != home.stat().st_uid or place.is_symlink():
                continue  # anybody may make a folder there that looks like ours
            orphaned = place != home and not Path(os.fsdecode(read_own(place / "origin"))).exists()
            clusters = [folder for folder in place.iterdir() if (folder / "data").is_dir()]
            if any((c / "data" / "postmaster.pid").exists() for c in clusters):
                continue
            if orphaned:
                shutil.rmtree(place, ignore_errors=True)
            for folder in clusters if place == home else ():
                if wall() - (folder / "data").stat().st_mtime > 30 * 86400:
                    shutil.rmtree(folder, ignore_errors=True)
