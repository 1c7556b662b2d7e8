"""How runs end, and what they leave: nothing that the next run's start has not cleared away. E1,
E2, E3, E10, E11."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dbclone.server.server import Server

from ..conftest import Project

TESTS = """
import os, pytest, time
from models import User

@pytest.mark.parametrize("i", range(6))
def test_ok(dbclone, i):
    User.create(name="x")
    assert User.select().count() == 1

def test_red(dbclone):
    User.create(name="x")
    assert not os.environ.get("RED")

def test_dies(dbclone):
    if os.environ.get("DIE"):
        os.kill(os.getpid(), 9)

def test_blocks(dbclone):
    User.create(name="x")
    if os.environ.get("BLOCK"):
        open("blocked", "w").close()
        time.sleep(300)

@pytest.fixture
def broken(dbclone):
    User.create(name="x")
    yield
    assert not os.environ.get("BREAK")

def test_broken_teardown(broken):
    pass
"""


@pytest.fixture
def suite(project: Project) -> Project:
    project.write(test_it=TESTS)
    return project


def blocked(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """Start a run and return once its blocking test is inside."""
    run = project.start("pytest", "-p", "no:cacheprovider", *arguments, BLOCK="1")
    marker = Path(project.folder, "blocked")
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    marker.unlink()
    return run


def next_run(project: Project) -> None:
    done = project.pytest("-q", "-k", "test_ok")
    assert "6 passed" in done.stdout, done.stdout + done.stderr


def settled(project: Project, server: Server) -> None:
    """Wait until the server has noticed which of the killed clients are gone, which may take it a
    moment."""
    deadline = time.monotonic() + 30
    while server.fetch(
        "SELECT 1 FROM pg_stat_activity WHERE datname ~ %s", [f"^dbclone_{project.name}_"]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("workers", "ending"),
    [("0", {}), ("0", {"BREAK": "1"}), ("1", {"RED": "1"}), ("4", {"BREAK": "1"})],
)
def test_a_run_leaves_its_template_and_no_clone(
    suite: Project, server: Server, workers: str, ending: dict[str, str]
) -> None:
    done = suite.pytest("-q", "-n", workers, timeout=120, **ending)
    assert done.returncode == (1 if ending else 0), done.stdout + done.stderr
    assert suite.clones(server) == []
    assert len(suite.databases(server)) == 1


@pytest.mark.parametrize("arguments", [["-x"], ["--maxfail=1", "-n", "2"]])
def test_stopping_at_the_first_failure_leaves_no_clone(
    suite: Project, server: Server, arguments: list[str]
) -> None:
    done = suite.pytest("-q", *arguments, timeout=120, RED="1")
    assert done.returncode != 0
    assert "1 failed" in done.stdout
    assert suite.clones(server) == []


@pytest.mark.parametrize(
    "distribution", ["load", "loadscope", "loadfile", "worksteal", "loadgroup"]
)
def test_every_distribution_of_xdist_works(
    suite: Project, server: Server, distribution: str
) -> None:
    done = suite.pytest("-q", "-n", "2", "--dist", distribution)
    assert "10 passed" in done.stdout, done.stdout + done.stderr
    assert suite.clones(server) == []


def test_a_worker_that_dies_is_replaced_and_its_clone_dropped_by_the_controller(
    suite: Project, server: Server
) -> None:
    """E1: os._exit in the middle of a test."""
    done = suite.pytest("-q", "-n", "2", timeout=120, DIE="1")
    assert "crashed while running" in done.stdout
    assert "1 failed, 9 passed" in done.stdout, done.stdout
    assert suite.clones(server) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_leaves_no_clone(suite: Project, server: Server, workers: str) -> None:
    run = blocked(suite, "-n", workers)
    os.killpg(run.pid, signal.SIGINT)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 2, output
    assert "KeyboardInterrupt" in output
    settled(suite, server)
    next_run(suite)
    assert suite.clones(server) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_nothing_of_a_killed_run_remains_after_the_next_ones_start(
    suite: Project, server: Server, workers: str
) -> None:
    """SIGKILL of controller and workers at once, in the middle of a test."""
    run = blocked(suite, "-n", workers)
    assert suite.clones(server)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    settled(suite, server)
    assert suite.clones(server)
    next_run(suite)
    assert suite.clones(server) == []


def test_a_run_does_not_touch_the_workers_that_outlive_their_controller(
    suite: Project, server: Server
) -> None:
    """E2: SIGKILL of the controller alone: a worker in the middle of a test still has its lease,
    and so its clone."""
    run = blocked(suite, "-n", "1")
    (alive,) = suite.clones(server)
    os.kill(run.pid, signal.SIGKILL)
    run.wait(timeout=60)
    next_run(suite)
    assert suite.clones(server) == [alive]
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    settled(suite, server)
    next_run(suite)
    assert suite.clones(server) == []


def test_two_runs_at_once_do_not_meet(suite: Project, server: Server) -> None:
    first = blocked(suite, "-n", "1")
    (own,) = suite.clones(server)
    done = suite.pytest("-q", "-n", "2")
    assert "10 passed" in done.stdout, done.stdout + done.stderr
    assert suite.clones(server) == [own]
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    settled(suite, server)


def test_the_names_of_clones_are_logged_when_they_are_created_and_dropped(suite: Project) -> None:
    done = suite.pytest("-k", "test_ok", "-o", "log_cli=true", "--log-cli-level=INFO")
    assert f"created clone dbclone_{suite.name}_" in done.stdout
    assert f"dropped clone dbclone_{suite.name}_" in done.stdout


def test_a_pytest_run_inside_a_workers_test_has_a_clone_of_its_own(
    suite: Project, server: Server
) -> None:
    suite.write(
        test_outer="""
        import subprocess, sys
        from models import User
        def test_outer(dbclone):
            User.create(name="outer")
            done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", "-k", "test_ok"],
                                  capture_output=True, text=True)
            assert "6 passed" in done.stdout, done.stdout + done.stderr
            assert User.select().count() == 1
        """
    )
    for workers in ("0", "1"):
        done = suite.pytest("-q", "-n", workers, "test_outer.py")
        assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert suite.clones(server) == []
