"""Whole runs of which any process is killed at any moment: the next run goes well all the same, and
of the dead nothing stays.

The moments and victims are the same each time; the environment variable TEST_LOAD multiplies the
rounds, and so makes new ones.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings

from ..conftest import Project
from .stops import until

ROUNDS = 2 * int(os.environ.get("TEST_LOAD", "1"))
PATIENCE = 60.0  # seconds for a run that has lost a process
TESTS = """
import pytest
from models import User

@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])
def test_alone(dbclone, number, reset):
    assert User.select().count() == 0
    for each in range(3):
        User.create(name=f"{number} {each}")
    assert User.select().count() == 3

"""
CONFTEST = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.dbclone(reset=item.callspec.params["reset"]))
"""


def members(leader: int) -> list[int]:
    """Return the processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def nobody(leader: int) -> bool:
    return not members(leader)


def children(parent: int) -> list[int]:
    try:
        return [
            int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        ]
    except OSError:
        return []


def kill_one(run: subprocess.Popen[str], own: Settings, dice: random.Random) -> str:
    """Kill a process of the run, or now and then one of the server's; return what it was."""
    server = Embedded.locate(own).cluster.pid()
    clients = sorted(members(run.pid))
    servers = [server, *children(server)] if server else []
    chosen = servers if servers and (not clients or dice.random() < 0.25) else clients
    if not chosen:
        return "nobody"
    victim = dice.choice(chosen)
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return "nobody"
    return (
        "controller"
        if victim == run.pid
        else "server"
        if victim == server
        else "backend"
        if victim in servers
        else "worker"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_whoever_is_killed_and_whenever(project: Project, own: Settings) -> None:
    """A1, A16, B1, B9, E4: SIGKILL, without a word to anybody."""
    project.environ |= {"DBCLONE_CACHE_DIR": str(own.cache)}
    project.write(test_blind=TESTS, conftest=CONFTEST)
    mine = replace(own, name=project.name)
    for number in range(ROUNDS):
        dice = random.Random(number)
        moment = dice.uniform(0.2, 3.0)
        run = project.start("pytest", "-q", "-p", "no:cacheprovider", "-n", "2")
        time.sleep(moment)
        told = f"round {number}: {kill_one(run, own, dice)} after {moment:.2f} s"
        output, _ = run.communicate(timeout=PATIENCE)
        until(partial(nobody, run.pid))
        done = project.pytest("-q", "-n", "2")
        assert done.returncode == 0, f"{told}\n{output[-3000:]}\n{done.stdout}{done.stderr}"
        assert "36 passed" in done.stdout, told
        pruned = project.run("dbclone", "prune")
        assert pruned.returncode == 0, f"{told}\n{pruned.stdout}{pruned.stderr}"
        with Server.open(mine) as server:
            assert project.clones(server) == [], told
            assert len(project.databases(server)) == 1, told
