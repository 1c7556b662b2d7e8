"""Everything is as always while a test has stopped the clocks or set them to another year."""

from __future__ import annotations

import time

import pytest

from dbclone.databases import ddl
from dbclone.server.server import Server

from ..conftest import Project

FROZEN = {
    "freezegun": "from freezegun import freeze_time\nfrozen = lambda year: freeze_time(f'{year}-02-03"
    " 04:05:06')\n",
    "time-machine": "import time_machine\nfrozen = lambda year: time_machine.travel(f'{year}-02-03"
    " 04:05:06Z', tick=False)\n",
}
CONFTEST = """
import datetime, pytest
from clocks import frozen

@pytest.fixture(scope="session", autouse=True)
def another_time():
    with frozen({year}):
        assert datetime.datetime.now().year == {year}
        yield
"""
TESTS = """
import os, threading, time
import psycopg, pytest
from clocks import frozen
from dbclone import ResetBlocked, SandboxLimit
from models import User, db

@pytest.mark.parametrize("n", range(2))
@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_whatever_the_reset(request, dbclone_worker, reset, n):
    assert time.time() == time.time()
    with dbclone_worker.isolated(reset, "test"):
        assert User.select().count() == 0
        with frozen(1999):
            User.create(name="ann")

def test_a_session_in_the_way_is_an_error_in_time(dbclone_worker):
    left = None
    with pytest.raises(ResetBlocked, match="0.3 s"), dbclone_worker.isolated("truncate", "test"):
        left = psycopg.connect(os.environ["DATABASE_URL"])
        left.execute('INSERT INTO "user" (name) VALUES (%s)', ["left"])
    left.close()

def test_who_holds_the_session_too_long_is_an_error_in_time(dbclone):
    done = threading.Event()

    def hold():
        with db.atomic():
            User.create(name="ann")
            held.set()
            done.wait(30)

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    with pytest.raises(SandboxLimit):
        User.select().count()
    done.set()
    thread.join()

def test_locks_that_others_hold_are_waited_for_no_longer_than_said(dbclone_worker, tmp_path):
    from dbclone.process.file_lock import file_lock
    from dbclone.server.server import Server

    server = dbclone_worker.server
    with Server.open(server.settings) as other, other.leases.lock("one", 5), file_lock(tmp_path / "lock", 5):
        with pytest.raises(TimeoutError), server.leases.lock("one", 0.1):
            pass
        with pytest.raises(TimeoutError), file_lock(tmp_path / "lock", 0.1):
            pass
"""


@pytest.mark.parametrize(
    ("library", "year", "workers"),
    [("freezegun", 2012, 0), ("freezegun", 2099, 2), ("time-machine", 2099, 0)],
)
def test_resets_and_deadlines_work_and_marks_tell_the_true_time(
    project: Project, server: Server, library: str, year: int, workers: int
) -> None:
    """E8: a frozen clock, from before the first database is made. A deadline that followed it would
    never pass, and what is waited for in these tests never comes; a mark that followed it would
    make this project's template, or all others, look unused."""
    project.configure(lock_timeout=0.3)
    project.write(clocks=FROZEN[library], conftest=CONFTEST.format(year=year), test_a=TESTS)
    begun = time.time()
    kept = project.name + "other"
    project.configure(lock_timeout=0.3, name=kept)
    assert project.run("dbclone", "prepare").returncode == 0
    project.configure(lock_timeout=0.3)
    done = project.pytest("-q", "-n", str(workers), timeout=90, PYTEST_ADDOPTS="")
    assert "11 passed" in done.stdout, done.stdout
    found = {database.name: database.mark for database in ddl.list_databases(server)}
    marks = [
        mark for name, mark in found.items() if f"_{project.name}_t_" in name and mark is not None
    ]
    assert [begun - 1 <= mark.created <= time.time() + 1 for mark in marks] == [True]
    assert any(f"_{kept}_t_" in name for name in found)
