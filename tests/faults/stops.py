"""Child processes that stop exactly at a named step: there they say so, and then die of SIGKILL or wait until told to go on.

A test calls `start` and talks to the `Child`. The child is this very file, run as a program. No step is a matter of time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbclone.server import Server

# Steps by name: the function where each is reached, and whether its call has been made. Or a word in what progress is told.
STEPS = {
    # of a build, in their order
    "created": ("dbclone.databases", "comment", "before"),
    "commented": ("dbclone.databases", "create", "after"),
    "filling": ("", "INSERT", "progress"),
    "filled": ("dbclone.build:Builder", "_fill", "after"),
    "closed": ("dbclone.databases", "close_to_others", "after"),
    "finished": ("dbclone.build:Builder", "_finish", "after"),
    "sealed": ("dbclone.databases", "seal", "after"),
    "renamed": ("dbclone.databases", "rename", "after"),
    "swapped": ("dbclone.databases", "swap", "after"),
    "waiting": ("", "waiting for", "progress"),
    # of a clone
    "leased": ("dbclone.databases", "create", "before"),
    "carrying": ("dbclone.databases", "carry_over", "before"),
    "cloned": ("dbclone.clone:Clone", "create", "after"),
    "in the test": ("", "in the test", "progress"),
    "dropping": ("dbclone.databases", "drop", "before"),
    "unsealed": ("dbclone.databases", "_run", "after"),
    "dropped": ("dbclone.databases", "drop", "after"),
    # of a reset: each has its own
    "rolling back": ("dbclone.reset.rollback:Rollback", "after", "before"),
    "rolled back": ("dbclone.reset.rollback:Rollback", "after", "after"),
    "asking": ("dbclone.reset.truncate:Truncate", "after", "before"),
    "putting right": ("dbclone.reset.truncate:Truncate", "_put_right", "before"),
    "put right": ("dbclone.reset.truncate:Truncate", "_put_right", "after"),
    "handing over": ("dbclone.copying:HandOver", "run", "before"),
    "handed over": ("dbclone.copying:HandOver", "run", "after"),
    "clearing": ("dbclone.reset.drop", "drop_everything", "before"),
    "cleared": ("dbclone.reset.drop", "drop_everything", "after"),
    "putting aside": ("dbclone.snapshots", "copy", "before"),
    "put aside": ("dbclone.snapshots", "copy", "after"),
}
LIMIT = 90  # seconds after which a child ends itself: only a broken test comes near


@dataclass
class Child:
    """A child process and what it has said."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def _until(self, mark: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(mark):
                return line[len(mark) :].strip()
        raise AssertionError(f"the child ended before it said {mark!r}:\n{''.join(self.said)}")

    def reaches(self, step: str) -> None:
        """Wait until the child is at a step."""
        self._until(f"@ {step}\n")

    def go(self) -> None:
        """Let a waiting child go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for what the child's action returned, or for its error."""
        found = json.loads(self._until("= "))
        assert isinstance(found, dict)
        return found

    def end(self) -> str:
        """Wait until the child has ended by itself; return what it said last."""
        assert self.process.stdout is not None
        said = self.process.stdout.read()  # to its end, which LIMIT bounds
        self.process.wait()
        return said

    def kill(self) -> None:
        """End the child by SIGKILL, unless it has done that itself, and wait for its death."""
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL


@contextlib.contextmanager
def children(folder: Path, options: Mapping[str, str]) -> Iterator[Callable[..., Child]]:
    """Give a function that starts children in a project; at the end none of them lives.

    The function's arguments: `action`, a name of ACTIONS; `stops`, from steps to "die", "wait" or "interrupt"; what else, the action's own
    arguments; `options`, further settings.
    """
    started: list[Child] = []

    def start(action: str, stops: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None, **values: Any) -> Child:
        plan = {"action": action, "stops": dict(stops or {}), "options": {**options, **(more or {})}, "values": values}
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(plan)],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if not k.startswith(("DBCLONE_", "PG", "PYTEST_")) and k != "DATABASE_URL"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(Child(process))
        return started[-1]

    try:
        yield start
    finally:
        for child in started:
            child.process.kill()
            child.process.communicate()


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again until the condition holds. How long that takes decides nothing; never is a failure."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def ended(server: Server, pid: int) -> None:
    """Wait until a session of the server is gone, and with it its locks: that is a moment after its client has closed it."""
    until(lambda: not server.fetch("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]))


def close(closing: Server, server: Server) -> None:
    """Close a server's connection and wait until `server` shows it no more."""
    pid = closing.connection.info.backend_pid
    closing.close()
    ended(server, pid)


# What follows runs in the child.


def _stop(step: str, act: str) -> None:
    print(f"@ {step}", flush=True)
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "interrupt":
        signal.raise_signal(signal.SIGINT)
    else:
        sys.stdin.readline()


def at(step: str, act: Callable[[], object], put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have `act` called when this process reaches a step, which is a call.

    Arguments: `put`, how the function there is exchanged, such as `monkeypatch.setattr`.
    """
    place, name, when = STEPS[step]
    module, _, room = place.partition(":")
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, room) if room else owner
    inner = getattr(owner, name)

    def stopping(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            act()
        result = inner(*arguments, **named)
        if when == "after":
            act()
        return result

    put(owner, name, stopping)


def main() -> None:
    from dbclone.errors import Error
    from dbclone.server import Server
    from dbclone.settings import load

    signal.alarm(LIMIT)
    plan = json.loads(sys.argv[1])
    stops: dict[str, str] = plan["stops"]
    for step, act in stops.items():
        if STEPS.get(step, ("",))[0]:
            at(step, functools.partial(_stop, step, act))

    def progress(text: str) -> None:
        for step, act in list(stops.items()):
            _, word, when = STEPS.get(step, ("", "", ""))
            if when == "progress" and word in text:
                del stops[step]  # once: a wait is told again every second
                _stop(step, act)

    try:
        with Server.open(load(Path.cwd(), plan["options"], {})) as server:
            if "start" in stops:
                _stop("start", stops["start"])
            result = ACTIONS[plan["action"]](server, progress, **plan["values"])
            print("= " + json.dumps(result), flush=True)
            if "end" in stops:
                _stop("end", stops["end"])
    except Error as error:
        print("= " + json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)


def ensure(server: Any, progress: Any, rebuild: bool = False, unlocked: bool = False) -> dict[str, Any]:
    """Ensure the project's template; with `unlocked`, as if no lock excluded anybody."""
    from dbclone import adapters
    from dbclone.build import Builder
    from dbclone.template import Template

    if unlocked:
        Builder.exclusively = lambda self: contextlib.nullcontext()  # type: ignore[method-assign,assignment,return-value]
    schema, handle = adapters.load(server.settings)
    template = Template.ensure(server, schema, handle, rebuild=rebuild, progress=progress)
    return {"name": template.name, "oid": template.database.oid, "built": template.built}


def clone(server: Any, progress: Any, owner: str, run: str) -> dict[str, Any]:
    """Ensure the template and copy it for one owner; the clone lives as long as the child."""
    from dbclone import adapters
    from dbclone.template import Template

    schema, handle = adapters.load(server.settings)
    made = Template.ensure(server, schema, handle, progress=progress).clone(owner, run)
    return {"name": made.name, "oid": server.fetch("SELECT oid::int8 FROM pg_database WHERE datname = %s", [made.name])[0][0]}


def live(server: Any, progress: Any, owner: str, run: str, reset: str) -> dict[str, Any]:
    """One worker's life: a clone, two tests in it, and its end. With the reset "snapshot" they put a state aside and come back."""
    from dbclone import adapters
    from dbclone.template import Template

    schema, handle = adapters.load(server.settings)
    with Template.ensure(server, schema, handle, progress=progress).clone(owner, run) as made:
        for test in ("one", "two"):
            with made.isolated("truncate" if reset == "snapshot" else reset, test) as isolation:
                assert isolation.execute("SELECT count(*) FROM item").fetchone() == (100,)
                isolation.execute("INSERT INTO item (name) VALUES ('new')")
                progress("in the test")
                if reset == "snapshot":
                    isolation.snapshot("here")
                    isolation.restore("here")
    return {"name": made.name}


def prune(server: Any, progress: Any, current: str) -> dict[str, Any]:
    """Drop what has had its time, when a run uses the template `current`."""
    room = importlib.import_module("dbclone.prune")
    return {"dropped": [database.name for database, _ in room.prune(server, current)]}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {"ensure": ensure, "clone": clone, "live": live, "prune": prune}

if __name__ == "__main__":
    main()
