"""Where benchmarks run: a private server, one with shipped settings on a disk, or one that exists;
and how progress is shown."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbclone.errors import ServerError
from dbclone.server.dsn import Dsn
from dbclone.server.private.account import private_folder, server_account
from dbclone.server.private.binaries import find
from dbclone.server.private.cluster import Cluster
from dbclone.server.server import Server
from dbclone.settings import Settings, load

ROOT = Path(__file__).parent.parent
EMBEDDED, DURABLE, GIVEN = "embedded", "durable", "given"


def say(text: str, passing: bool = False) -> None:
    """Show progress on stderr; what is `passing` only to a person who watches, in one line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="" if passing else "\n", file=sys.stderr, flush=True)
    elif not passing:
        print(text, file=sys.stderr, flush=True)


@dataclass
class Place:
    """What all parts are given.

    `folder`, for files, removed at the end; `quick`, few and small; `url`, of an existing server,
    or empty; `binaries`, of private servers; `seconds`, what the part may take at most, for parts
    that go on as long as there is time; `partial`, what a part has so far, which is kept if it does
    not come to its end.
    """

    folder: Path
    quick: bool = False
    url: str = ""
    binaries: str = ""
    seconds: float = 3600.0
    partial: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the part should end."""
        return self.seconds - (time.monotonic() - self.started)

    def settings(self, **more: str) -> Settings:
        """Return dbclone's settings for a project of ours."""
        options: dict[str, Any] = {
            "cache_dir": str(self.folder / "cache"),
            "name": f"benchmark{os.getpid()}",
            **more,
        }
        if self.binaries:
            options["binaries"] = self.binaries
        return load(self.folder, options, {})

    @contextlib.contextmanager
    def server(self, **more: str) -> Iterator[Server]:
        """Yield the server that exists, or else a private one, of which nothing is left afterwards."""
        if self.url:
            with Server.open(self.settings(url=self.url, **more)) as server:
                yield server
            return
        with contextlib.ExitStack() as stack:
            server = Server.open(self.settings(**more))
            assert server.embedded is not None
            for folder in (server.embedded.home, server.embedded.disk):
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(server.embedded.cluster.stop)
            stack.callback(server.close)
            yield server

    @contextlib.contextmanager
    def durable(self) -> Iterator[Server]:
        """Yield a server with the same binaries, on a disk, and with the settings that PostgreSQL
        is shipped with."""
        account, found = server_account(), find(self.settings())
        disk = (
            Path("/var/tmp")
            if os.access("/var/tmp", os.W_OK | os.X_OK)
            else Path(tempfile.gettempdir())
        )
        folder = private_folder(disk / f"dbclone-durable-{secrets.token_hex(4)}", account)
        process = None
        try:
            cluster = Cluster(folder, folder, found.readable_by(account, folder), account)
            cluster.init()
            process = _started(cluster)
            where = Dsn(
                (
                    ("host", str(folder)),
                    ("port", "5432"),
                    ("user", "postgres"),
                    ("dbname", "postgres"),
                )
            )
            with Server.open(self.settings(url=where.url)) as server:
                yield server
        finally:
            if process is not None:
                cluster.stop()
                process.wait(10)
            for path in (folder, *folder.parent.glob(f"{folder.name}-binaries-*")):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def servers(self) -> Iterator[dict[str, Server]]:
        """Yield the server that exists, or a private one and one with shipped settings, by name."""
        with self.server() as first:
            if self.url:
                yield {GIVEN: first}
                return
            with self.durable() as second:
                yield {EMBEDDED: first, DURABLE: second}


def _started(cluster: Cluster) -> subprocess.Popen[bytes]:
    """Start a server with nothing set but where it listens."""
    settings = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(cluster.socket),
    }
    command = [
        str(cluster.binaries.folder / "postgres"),
        "-D",
        str(cluster.data),
        "-c",
        "dynamic_shared_memory_type=posix",
    ]
    command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    with open(cluster.log, "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cluster.folder,
            env={**environ, "LC_ALL": "C"},
            **cluster.account.popen,
        )
    deadline = time.monotonic() + 30
    while not cluster.is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise ServerError(
                "the durable server did not start", cluster.log_tail(), "See its messages above."
            )
        time.sleep(0.005)
    return process


def file_system(path: Path) -> str:
    """Return the type of the file system that has `path`, such as ext4; empty where that cannot be
    told."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    found = [
        (len(mount[1]), mount[2])
        for mount in mounts
        if path.is_relative_to(mount[1].replace("\\040", " "))
    ]
    return max(found)[1] if found else ""


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment for processes that are measured: this checkout's dbclone, and nothing
    that leads elsewhere."""
    strange = ("DBCLONE_", "PG", "PYTEST_")
    environ = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(strange) and key != "DATABASE_URL"
    }
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**environ, "PYTHONPATH": str(ROOT), **more}
