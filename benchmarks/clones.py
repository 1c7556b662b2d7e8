"""What a copy of a template costs: by its size, by how the server copies it, by how many want one
at once; and from the warm pool.

Control: `cp -r` of the template's own directory, which is the physical floor, onto the same file
system. Factors (do not change): the template is a shop of 30 tables, of which one has rows until
the database has the wanted size; the copy is made by `template.clone()`, with everything that
belongs to it (lease, mark, grants), and dropped after its time was taken. What is copied n at once
is asked for by n sessions at the same moment, and the time is until the last one has it, divided by
n.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbclone.databases import ddl
from dbclone.databases.copying import warm
from dbclone.server.private.cluster import free_bytes
from dbclone.server.server import Server
from dbclone.template.template import Template

from .pairs import summary
from .pings import settings
from .places import Place, file_system, say
from .shop import Shop

MEGABYTES = (8, 64, 256, 1024)
AT_ONCE = (1, 2, 4, 8, 16)
STRATEGIES = ("file_copy", "wal_log")
REFLINK, COPY, POOL = "file_copy_method=clone", "cp -r", "warm pool"
_ROW = 121  # bytes of disk that a seeded row takes, its two indexes included
_FICLONE = 0x40049409  # from linux/fs.h


@dataclass
class Sized:
    """A template of about so many megabytes, and what its copies took: contender to seconds, by how
    many at once."""

    server: Server
    template: Template
    megabytes: float
    wanted: int
    seconds: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    @classmethod
    def make(cls, server: Server, megabytes: int) -> Sized:
        shop = Shop(30, max(0, megabytes - 8) * 2**20 // _ROW)
        template = Template.ensure(server, shop)
        ((size,),) = server.fetch("SELECT pg_database_size(%s::oid)", [template.database.oid])
        server.connection.execute("CHECKPOINT")
        return cls(server, template, size / 2**20, megabytes)

    def note(self, contender: str, count: int, taken: float) -> None:
        self.seconds.setdefault((contender, count), []).append(taken)

    def copied(self, directory: Path) -> None:
        """Note how long it takes to copy the template's directory."""
        source, target = (
            directory / "base" / str(self.template.database.oid),
            directory / "base" / "copied",
        )
        started = time.perf_counter()
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
        self.note(COPY, 1, time.perf_counter() - started)
        shutil.rmtree(target)

    def cloned(self, contender: str, sessions: list[Template]) -> None:
        """Note how long it takes until all sessions have a clone, divided by their number."""
        barrier = threading.Barrier(len(sessions) + 1)
        failed: list[BaseException] = []

        def one(template: Template, number: int) -> None:
            try:
                barrier.wait(60)
                clone = template.clone(f"w{number}")
                barrier.wait(600)
                clone.drop()
            except BaseException as error:
                failed.append(error)
                barrier.abort()

        threads = [
            threading.Thread(target=one, args=item, daemon=True)
            for item in zip(sessions, range(len(sessions)), strict=True)
        ]
        for thread in threads:
            thread.start()
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(60)
            started = time.perf_counter()
            barrier.wait(600)
            self.note(contender, len(sessions), (time.perf_counter() - started) / len(sessions))
        for thread in threads:
            thread.join()
        if failed:
            raise next(
                (error for error in failed if not isinstance(error, threading.BrokenBarrierError)),
                failed[0],
            )

    def handed_over(self) -> None:
        """Note how long it takes to get a clone that was made ahead, as `dbclone prepare --workers`
        does."""
        warm(self.server, self.template.database, 1)
        self.cloned(POOL, [self.template])

    def data(self, where: str) -> list[dict[str, Any]]:
        """Return everything as plain data, in milliseconds."""
        return [
            {
                "server": where,
                "wanted_mb": self.wanted,
                "megabytes": self.megabytes,
                "contender": contender,
                "at_once": count,
                **summary([value * 1000 for value in found]),
                "runs_ms": [value * 1000 for value in found],
            }
            for (contender, count), found in self.seconds.items()
        ]


def can_reflink(folder: Path) -> bool:
    """Return whether files in this folder can share their blocks."""
    try:
        with (
            tempfile.NamedTemporaryFile(dir=folder) as one,
            tempfile.NamedTemporaryFile(dir=folder) as other,
        ):
            one.write(b"x" * 8192)
            one.flush()
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
            return True
    except OSError:
        return False


def reflink_folder() -> Path | None:
    """Return a writable folder on a file system with reflinks, if one is mounted."""
    folders = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.home()]
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        folders += [
            Path(mount[1]) for mount in mounts if mount[2] in ("xfs", "btrfs", "bcachefs", "ocfs2")
        ]
    return next(
        (
            folder
            for folder in folders
            if folder.is_dir() and os.access(folder, os.W_OK) and can_reflink(folder)
        ),
        None,
    )


def measure(place: Place) -> dict[str, Any]:
    """Measure everything on a private server (or the one given), and the two smallest sizes on one
    with shipped settings."""
    found: dict[str, Any] = {"servers": {}, "rows": [], "left_out": []}
    with place.servers() as servers:
        for where, server in servers.items():
            directory = _directory(server)
            found["servers"][where] = {
                **settings(server),
                "file_system": file_system(directory) if directory else "",
            }
            second = where != next(iter(servers))
            most = (8 if second else 64) if place.quick else 64 if second else max(MEGABYTES)
            for megabytes in (m for m in MEGABYTES if m <= most):
                if place.left < -place.seconds / 2:
                    found["left_out"].append(f"{megabytes} MB on {where}: there was no time left")
                    continue
                if directory and free_bytes(directory) < 4 * megabytes * 2**20 + 2**29:
                    found["left_out"].append(
                        f"{megabytes} MB on {where}: there is no room for four times as much"
                    )
                    continue
                say(f"clone: {megabytes} MB, {where}")
                found["rows"] += _measured(place, server, where, directory, megabytes)
    folder = None if place.url else reflink_folder()
    if folder is None:
        found["left_out"].append(f"{REFLINK}: no file system with reflinks is mounted here")
    else:
        with (
            tempfile.TemporaryDirectory(dir=folder) as data,
            place.server(data_dir=f"{data}/server") as server,
        ):
            if server.facts.major < 18:
                found["left_out"].append(f"{REFLINK}: PostgreSQL {server.version} does not know it")
            else:
                server.connection.execute("ALTER SYSTEM SET file_copy_method = 'clone'")
                server.connection.execute("SELECT pg_reload_conf()")
                found["servers"]["reflink"] = {
                    **settings(server),
                    "file_system": file_system(folder),
                }
                for megabytes in (m for m in MEGABYTES if m <= (64 if place.quick else 1024)):
                    found["rows"] += _measured(
                        place, server, "reflink", _directory(server), megabytes
                    )
    return found


def _measured(
    place: Place, server: Server, where: str, directory: Path | None, megabytes: int
) -> list[dict[str, Any]]:
    """Return all figures of one size: contenders take turns."""
    sized = Sized.make(server, megabytes)
    strategies = [s for s in STRATEGIES if server.facts.major >= 15] or ["auto"]
    cheap = not (
        place.quick or server.facts.durable
    )  # copies that are written through to a disk take long
    counts = (
        AT_ONCE if megabytes == MEGABYTES[0] and cheap else (1, 4)[: 2 if megabytes <= 64 else 1]
    )
    rounds = {8: 15, 64: 7 if cheap else 3}.get(megabytes, 3) if not place.quick else 3
    with contextlib.ExitStack() as stack:
        sessions = {
            s: [stack.enter_context(_session(sized, place, s)) for _ in range(max(counts))]
            for s in strategies
        }
        turns: list[Callable[[], None]] = (
            [lambda: sized.copied(directory)] if directory is not None else []
        )
        turns += [lambda s=s: sized.cloned(s, sessions[s][:1]) for s in strategies]  # type: ignore[misc]
        turns.append(sized.handed_over)
        for number in range(rounds + 1):
            for turn in turns:
                turn()
            for count in counts[1:] if number <= max(2, rounds // 3) else ():
                for strategy in strategies:
                    sized.cloned(strategy, sessions[strategy][:count])
            if not number:  # the first round fills caches
                sized.seconds.clear()
            if number >= 3 and place.left < 0:
                break
    ddl.drop(server, sized.template.database)
    return sized.data(where)


@contextlib.contextmanager
def _session(sized: Sized, place: Place, strategy: str) -> Iterator[Template]:
    """Yield the template as another session sees it, which copies it by a strategy of its own."""
    options = {"clone_strategy": strategy, "clone_limit": str(max(AT_ONCE))}
    with Server.open(place.settings(url=sized.server.dsn.url, **options)) as server:
        yield Template(server, sized.template.database, sized.template.schema)


def _directory(server: Server) -> Path | None:
    """Return the data directory of a server on this machine if we can read it."""
    ((folder,),) = server.fetch("SELECT current_setting('data_directory')")
    path = Path(str(folder))
    return path if os.access(path / "base", os.W_OK | os.X_OK) else None
