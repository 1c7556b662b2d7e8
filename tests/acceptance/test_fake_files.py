"""Tests that replace the file system with a fake one still have their database."""

from __future__ import annotations

import pytest

from ..conftest import Project

TESTS = """
import os, pytest
from models import User, db

def use():
    assert not os.path.exists(__file__)
    for name in ("ann", "bob"):
        db.close()
        db.connect(reuse_if_open=True)
        User.create(name=name)
    assert User.select().count() == 2

{first}

@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "clone", "drop"])
def test_whatever_the_reset(fs, dbclone_worker, reset):
    with dbclone_worker.isolated(reset, "test"):
        assert User.select().count() == 0
        use()

def test_nothing_is_left(dbclone, fs):
    assert User.select().count() == 0
"""
FIRST = {
    "in the signature": "def test_first(fs, dbclone):\n    use()",
    "before ours": "def test_first(fs, request):\n   "
    " request.getfixturevalue('dbclone')\n    use()",
    "of the session": "def test_first(fs_session, request):\n   "
    " request.getfixturevalue('dbclone')\n    use()",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "first", "workers"),
    [
        ("psycopg", "in the signature", 2),
        ("psycopg", "before ours", 0),
        ("psycopg", "of the session", 0),
        ("psycopg2", "before ours", 0),
    ],
)
def test_pyfakefs_from_the_first_test_on(
    project: Project, driver: str, first: str, workers: int
) -> None:
    """E9: locks, folders and sockets are real ones, whatever `os` is when they are first needed,
    and go away at the end."""
    if driver == "psycopg2":
        models = (project.folder / "models.py").read_text()
        project.write(models=models.replace("prefer_psycopg3=True", ""))
    project.write(test_a=TESTS.format(first=FIRST[first]))
    place = project.folder.parent / "tmp"
    place.mkdir()
    done = project.pytest(
        "-q", "-n", str(workers), "-p", "no:randomly", TMPDIR=str(place), PYTEST_ADDOPTS=""
    )
    assert "7 passed" in done.stdout, done.stdout
    assert done.stdout.count("built in") == 1
    assert not list(place.glob("dbclone*"))
