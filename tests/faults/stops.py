"""Steps of builds, clones and resets by name, at which a process stops: it says so, and then dies,
or waits until told to go on.

No step is a matter of time. `nursery` has the processes that stop; `at` is for a test that does
something itself at a step.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbclone.server.server import Server

# Steps by name: the function where each is reached, and whether its call has been made. Or a word
# in what progress is told.
STEPS = {
    # of a build, in their order
    "created": ("dbclone.databases.ddl", "comment", "before"),
    "commented": ("dbclone.databases.ddl", "create", "after"),
    "filling": ("", "INSERT", "progress"),
    "filled": ("dbclone.template.builder:Builder", "_fill", "after"),
    "closed": ("dbclone.databases.ddl", "close_to_others", "after"),
    "finished": ("dbclone.template.builder:Builder", "_finish", "after"),
    "sealed": ("dbclone.databases.ddl", "seal", "after"),
    "renamed": ("dbclone.databases.ddl", "rename", "after"),
    "swapped": ("dbclone.databases.ddl", "swap", "after"),
    "waiting": ("", "waiting for", "progress"),
    # of a clone
    "leased": ("dbclone.databases.ddl", "create", "before"),
    "carrying": ("dbclone.databases.ddl", "carry_over", "before"),
    "cloned": ("dbclone.clone.clone:Clone", "create", "after"),
    "in the test": ("", "in the test", "progress"),
    "dropping": ("dbclone.databases.ddl", "drop", "before"),
    "unsealed": ("dbclone.databases.ddl", "_run", "after"),
    "dropped": ("dbclone.databases.ddl", "drop", "after"),
    # of a reset: each has its own
    "rolling back": ("dbclone.reset.rollback:Level", "leave", "before"),
    "rolled back": ("dbclone.reset.rollback:Level", "leave", "after"),
    "asking": ("dbclone.reset.truncate.put_back:PutBack", "run", "before"),
    "putting right": ("dbclone.reset.truncate.put_back:PutBack", "_put_right", "before"),
    "put right": ("dbclone.reset.truncate.put_back:PutBack", "_put_right", "after"),
    "handing over": ("dbclone.databases.copying:HandOver", "run", "before"),
    "handed over": ("dbclone.databases.copying:HandOver", "run", "after"),
    "clearing": ("dbclone.reset.rebuild", "drop_everything", "before"),
    "cleared": ("dbclone.reset.rebuild", "drop_everything", "after"),
    "putting aside": ("dbclone.clone.snapshots", "copy", "before"),
    "put aside": ("dbclone.clone.snapshots", "copy", "after"),
}
LIMIT = 90  # seconds after which a child ends itself: only a broken test comes near


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again until the condition holds. How long that takes decides nothing; never is
    a failure."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def ended(server: Server, pid: int) -> None:
    """Wait until a session of the server is gone, and with it its locks: that is a moment after its
    client has closed it."""
    until(lambda: not server.fetch("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]))


def close(closing: Server, server: Server) -> None:
    """Close a server's connection and wait until `server` shows it no more."""
    pid = closing.connection.info.backend_pid
    closing.close()
    ended(server, pid)


def _stop(step: str, act: str) -> None:
    print(f"@ {step}", flush=True)
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "interrupt":
        signal.raise_signal(signal.SIGINT)
    else:
        sys.stdin.readline()


def at(
    step: str, act: Callable[[], object], put: Callable[[Any, str, Any], None] = setattr
) -> None:
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


def main(plan: dict[str, Any]) -> None:
    from dbclone.errors import Error
    from dbclone.server.server import Server
    from dbclone.settings import load

    signal.alarm(plan.get("limit", LIMIT))
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

    if "gate" in stops:
        _stop("gate", stops["gate"])
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


def ensure(
    server: Any, progress: Any, rebuild: bool = False, unlocked: bool = False
) -> dict[str, Any]:
    """Ensure the project's template; with `unlocked`, as if no lock excluded anybody."""
    from dbclone.adapters import handles as adapters
    from dbclone.template.builder import Builder
    from dbclone.template.template import Template

    if unlocked:
        Builder.exclusively = lambda self: contextlib.nullcontext()  # type: ignore[method-assign,assignment,return-value]
    schema, handle = adapters.load(server.settings)
    template = Template.ensure(server, schema, handle, rebuild=rebuild, progress=progress)
    return {"name": template.name, "oid": template.database.oid, "built": template.built}


def clone(server: Any, progress: Any, owner: str, run: str) -> dict[str, Any]:
    """Ensure the template and copy it for one owner; the clone lives as long as the child."""
    from dbclone.adapters import handles as adapters
    from dbclone.template.template import Template

    schema, handle = adapters.load(server.settings)
    made = Template.ensure(server, schema, handle, progress=progress).clone(owner, run)
    return {
        "name": made.name,
        "oid": server.fetch("SELECT oid::int8 FROM pg_database WHERE datname = %s", [made.name])[0][
            0
        ],
    }


def live(server: Any, progress: Any, owner: str, run: str, reset: str) -> dict[str, Any]:
    """One worker's life: a clone, two tests in it, and its end. With the reset "snapshot" they put
    a state aside and come back."""
    from dbclone.adapters import handles as adapters
    from dbclone.template.template import Template

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


def churn(server: Any, progress: Any, owner: str, run: str, clones: int) -> dict[str, Any]:
    """Have several clones one after the other, sign each, and drop what the dead of other runs left
    in between."""
    from dbclone.adapters import handles as adapters
    from dbclone.template.template import Template

    template = Template.ensure(server, adapters.load(server.settings)[0])
    found = []
    for _ in range(clones):
        with template.clone(owner, run) as made, made.connect(autocommit=True) as connection:
            state = connection.execute(
                "SELECT count(*)::int, count(signature) FROM item"
            ).fetchone()
            connection.execute("UPDATE item SET signature = %s", [f"{run} {owner}"])
            prune(server, progress, template.name)
            found.append(
                [state, connection.execute("SELECT DISTINCT signature FROM item").fetchall()]
            )
    return {
        "name": template.name,
        "oid": template.database.oid,
        "built": template.built,
        "found": found,
    }


def prune(server: Any, progress: Any, current: str) -> dict[str, Any]:
    """Drop what has had its time, when a run uses the template `current`."""
    room = importlib.import_module("dbclone.databases.prune")
    return {"dropped": [database.name for database, _ in room.prune(server, current)]}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "ensure": ensure,
    "clone": clone,
    "live": live,
    "churn": churn,
    "prune": prune,
}
