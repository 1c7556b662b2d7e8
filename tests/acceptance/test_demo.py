"""The bundled suite, as a newcomer runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

import dbclone
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server

from ..conftest import Project

pytestmark = pytest.mark.slow

DEMO = Path(dbclone.__file__).parent / "demo"


def test_it_passes_on_two_workers_and_reports(project: Project) -> None:
    done = project.run("dbclone", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "139 passed" in done.stdout
    assert "2 clones in" in done.stdout
    assert "139 x rollback in" in done.stdout


@pytest.mark.parametrize("reset", ["auto", "truncate"])
def test_it_passes_on_a_server_given_by_url_for_a_role_with_createdb_only(
    project: Project, server: Server, role: Dsn, reset: str
) -> None:
    done = project.run(
        "dbclone",
        "demo",
        "--workers",
        "0",
        "--url",
        role.url,
        "--reset",
        reset,
        "--name",
        project.name,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "139 passed" in done.stdout
    assert project.clones(server) == []
    assert len(project.databases(server)) == 1


def test_it_is_sensitive_to_a_leak(project: Project) -> None:
    """Without any reset the suite fails almost everywhere, so that its passing says something."""
    done = project.run("dbclone", "demo", "--workers", "0", "--reset", "none", "--", "-q")
    assert done.returncode == 1
    wrong = sum(line.startswith(("FAILED ", "ERROR ")) for line in done.stdout.splitlines())
    assert wrong > 100, done.stdout[-2000:]


def test_it_writes_nothing_into_its_own_folder(project: Project) -> None:
    """E15: a checkout may be read-only."""
    before = {
        path: path.stat().st_mtime_ns for path in DEMO.rglob("*") if "__pycache__" not in path.parts
    }
    project.run("dbclone", "demo", "--", "-q", "tests/test_users.py")
    assert {
        path: path.stat().st_mtime_ns for path in DEMO.rglob("*") if "__pycache__" not in path.parts
    } == before
