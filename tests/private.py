"""What tests of the private server share: a server of a test's own, and other processes, also of
other users."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbclone.server.private.embedded import Embedded
from dbclone.settings import Settings, load

from . import developer

STRANGER = 65534  # nobody
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

PROGRAM = """
import json, sys
from dbclone.errors import Error
from dbclone.server.server import Server
from dbclone.settings import load
options, setup = json.loads(sys.argv[1]), sys.argv[2]
exec(setup)
server = None
for line in sys.stdin:
    word, _, argument = line.strip().partition(" ")
    try:
        if word == "open":
            server = Server.open(load(options=options, environ={}))
            private = server.embedded
            said = {"started": private.started, "home": str(private.home), "disk": str(private.disk), "pid": private.cluster.pid(),
                    "socket": str(private.cluster.socket), "system": server.facts.system}
        elif word == "close":
            server.close()
            said = private.cluster.pid() is None
        else:
            said = eval(argument) if word == "eval" else word
    except Error as error:
        said = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(said), flush=True)
"""


@dataclass
class Other:
    """Another process: `ask` it to "open" or "close" its server, or to "eval" an expression."""

    process: subprocess.Popen[str]

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process ended instead of answering"
        return json.loads(line)

    def ask(self, words: str) -> Any:
        self.tell(words)
        return self.answer()

    def kill(self) -> None:
        """End it by SIGKILL and wait for its death."""
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Other]


@contextlib.contextmanager
def others() -> Iterator[Start]:
    """Give a function that starts processes, none of which lives at the end.

    The function's arguments: `options`, their settings; `setup`, Python to run first; `before`, a
    command that runs the rest as its arguments; what else, for Popen.
    """
    started: list[Other] = []

    def start(
        options: Mapping[str, str],
        setup: str = "",
        before: tuple[str, ...] = (),
        python: str = sys.executable,
        **popen: Any,
    ) -> Other:
        command = [*before, python, "-c", PROGRAM, json.dumps(dict(options)), setup]
        found = Other(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen
            )
        )
        started.append(found)
        return found

    try:
        yield start
    finally:
        for other in started:
            other.kill()


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's are not; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dbclone-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that every user may write in, as /tmp is."""
    with public_folder() as folder:
        (folder / "all").mkdir()
        (folder / "all").chmod(0o1777)
        yield folder / "all"


@contextlib.contextmanager
def own_server(root: Path, options: Mapping[str, str], **more: Any) -> Iterator[Settings]:
    """Settings that lead to a server of one's own; at the end it does not run, and its data are
    gone. A user's files are beside its folders, and are as they were."""
    found = load(root, {**options, "cache_dir": str(root / "cache"), **more}, {})
    with developer.files(
        root,
        *([Path(found.data_dir).parent] if Path(found.data_dir).is_absolute() else []),
        name="papers",
    ):
        try:
            yield found
        finally:
            clear(Embedded.locate(found))


def clear(server: Embedded) -> None:
    """Stop a server and remove its data, wherever they are."""
    pid = server.cluster.pid()
    if pid is not None:
        os.kill(pid, signal.SIGCONT)
        server.cluster.stop()
    copies = server.disk.parent.glob(f"{server.disk.name}-binaries-*")
    for folder in (server.home, server.disk, server.cluster.socket, *copies):
        shutil.rmtree(folder, ignore_errors=True)


def settings_of(settings: Settings) -> dict[str, str]:
    """Return the options that lead another process to the same server."""
    return {
        key: str(getattr(settings, key))
        for key in ("cache_dir", "binaries", "data_dir")
        if getattr(settings, key)
    }
