"""Processes that stop at the steps of `stops`: a test calls the function that `children` gives, and
talks to the `Child`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .stops import LIMIT, main

ROOT = Path(__file__).parents[2]


class Nursery:
    """A process that has imported everything and has nothing else: children are forked from it,
    which costs next to nothing."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        self._socket = ours

    def _ask(self, words: Mapping[str, Any], *files: int) -> int:
        socket.send_fds(self._socket, [json.dumps(words).encode()], files)
        return int(self._socket.recv(100))

    def bear(self, plan: Mapping[str, Any]) -> Child:
        """Fork a child that does what a plan says."""
        its_input, to_it = os.pipe()
        from_it, its_output = os.pipe()
        pid = self._ask(plan, its_input, its_output)
        os.close(its_input)
        os.close(its_output)
        return Child(self, pid, os.fdopen(to_it, "w"), os.fdopen(from_it))

    def buried(self, pid: int) -> int:
        """Wait until a child has ended; return its exit status, negative for the signal that killed
        it."""
        return self._ask({"buried": pid})

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@dataclass
class Child:
    """A child process and what it has said."""

    nursery: Nursery
    pid: int
    stdin: IO[str]
    stdout: IO[str]
    said: list[str] = field(default_factory=list)
    status: int | None = None

    def _until(self, mark: str) -> str:
        for line in self.stdout:
            self.said.append(line)
            if line.startswith(mark):
                return line[len(mark) :].strip()
        raise AssertionError(f"the child ended before it said {mark!r}:\n{''.join(self.said)}")

    def reaches(self, step: str) -> None:
        """Wait until the child is at a step."""
        self._until(f"@ {step}\n")

    def go(self) -> None:
        """Let a waiting child go on."""
        self.stdin.write("\n")
        self.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for what the child's action returned, or for its error."""
        found = json.loads(self._until("= "))
        assert isinstance(found, dict)
        return found

    def end(self) -> str:
        """Wait until the child has ended by itself; return what it said last."""
        said = self.stdout.read()  # to its end, which LIMIT bounds
        self.status = self.nursery.buried(self.pid)
        return said

    def kill(self) -> None:
        """End the child by SIGKILL, unless it has done that itself, and wait for its death."""
        os.kill(self.pid, signal.SIGKILL)
        self.status = self.nursery.buried(self.pid)
        assert self.status == -signal.SIGKILL

    def close(self) -> None:
        """End it, if it lives still."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.nursery.buried(self.pid)
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()


Start = Callable[..., Child]


@contextlib.contextmanager
def children(nursery: Nursery, folder: Path, options: Mapping[str, str]) -> Iterator[Start]:
    """Give a function that starts children in a project; at the end none of them lives.

    The function's arguments: `action`, a name of ACTIONS; `stops`, from steps to "die", "wait" or
    "interrupt"; `more`, further settings; `folder`, of another project; `limit`, seconds after
    which it ends itself; what else, the action's own arguments.
    """
    environ = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("DBCLONE_", "PG", "PYTEST_")) and k != "DATABASE_URL"
    }
    started: list[Child] = []

    def start(
        action: str,
        stops: Mapping[str, str] | None = None,
        more: Mapping[str, str] | None = None,
        folder: Path = folder,
        limit: int = LIMIT,
        **values: Any,
    ) -> Child:
        plan = {
            "action": action,
            "stops": dict(stops or {}),
            "options": {**options, **(more or {})},
            "values": values,
        }
        started.append(
            nursery.bear({**plan, "folder": str(folder), "environ": environ, "limit": limit})
        )
        return started[-1]

    try:
        yield start
    finally:
        for child in started:
            child.close()


# What follows runs in the nursery and in the children.


def nursery(place: int) -> None:
    """Fork children for whoever is at the other end of a socket, and wait for their deaths, until
    it is closed."""
    for module in (
        "dbclone.adapters.peewee",
        "dbclone.template.template",
        "dbclone.databases.prune",
        "filelock",
        "peewee",
    ):
        importlib.import_module(module)
    with socket.socket(fileno=place) as other:
        while True:
            data, files, _, _ = socket.recv_fds(other, 1_000_000, 2)
            if not data:
                return
            plan = json.loads(data)
            if "buried" in plan:
                _, status = os.waitpid(plan["buried"], 0)
                other.send(str(os.waitstatus_to_exitcode(status)).encode())
                continue
            pid = os.fork()
            if not pid:
                other.close()
                _live(plan, *files)
            for file in files:
                os.close(file)
            other.send(str(pid).encode())


def _live(plan: dict[str, Any], its_input: int, its_output: int) -> None:
    """Be a child: do what the plan says, and end."""
    for source, target in ((its_input, 0), (its_output, 1), (its_output, 2)):
        os.dup2(source, target)
    os.closerange(3, 1000)
    os.chdir(plan["folder"])
    os.environ.clear()
    os.environ.update(plan["environ"])
    try:
        main(plan)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    nursery(int(sys.argv[1]))
