"""A forked process inherits dbclone's connections, locks and exits, and does nothing with them."""

from __future__ import annotations

import pytest

from ...conftest import Project

SCRIPT = """
import os, sys
import dbclone
from models import User

def look(clone):
    with clone.connect() as connection:
        return connection.execute('SELECT count(*) FROM "user"').fetchone()

def life(reset):
    template = dbclone.prepare("models:MODELS")
    with template.clone() as clone:
        backend = template.server.connection.info.backend_pid
        with clone.isolated(reset, "test") as isolation:
            User.create(name="ann")
            own = isolation.execute("SELECT pg_backend_pid()").fetchone()
            child = os.fork()
            if not child:
                {child}
            assert os.waitpid(child, 0)[1] == {status}
            assert User.select().count() == 1
            assert isolation.execute("SELECT pg_backend_pid()").fetchone() == own
            assert look(clone) == ((0,) if reset == "rollback" else (1,))
        assert User.select().count() == 0
        assert look(clone) == (0,)
        with template.server.connect("postgres", "a look") as connection:
            found = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = %s", [backend])
            assert found.fetchone()[0] >= 2

for reset in ("rollback", "truncate", "clone"):
    life(reset)
print("all is well")
"""


@pytest.mark.parametrize(
    ("child", "status"),
    [
        ("sys.exit(3)", 3 << 8),
        ("isolation.connection.close(); clone.drop(); template.close(); os._exit(0)", 0),
        ("return", 0),
    ],
)
def test_a_child_that_leaves_the_parents_blocks_ends_nothing_in_them(
    project: Project, child: str, status: int
) -> None:
    """D13: by an exception through all of them, with dbclone's functions, or by running to the end
    of the program. The parent's database, rows, sessions and locks are as before."""
    project.write(
        script=SCRIPT.format(
            child="os.environ['CHILD'] = '1'; return" if child == "return" else child, status=status
        )
    )
    text = (project.folder / "script.py").read_text()
    project.write(
        script=text.replace(
            "    life(reset)\n",
            "    life(reset)\n    if os.environ.get('CHILD'):\n        sys.exit(0)\n",
        )
    )
    done = project.run("script")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all is well\n"
    assert not done.stderr


USE = """
import multiprocessing, os, pytest
from models import User, db
from dbclone import SandboxLimit

FORK = multiprocessing.get_context("fork")

def write(answers, before=lambda: None):
    try:
        before()
        User.create(name="bob")
        answers.put("wrote")
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")

def anew(answers):
    write(answers, lambda: (db.close(), db.connect()))

def in_child(function):
    answers = FORK.Queue()
    child = FORK.Process(target=function, args=[answers])
    child.start()
    found = answers.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    return found

@pytest.mark.parametrize("function", [write, anew])
def test_rolled_back(dbclone, function):
    User.create(name="ann")
    assert "is a fork of" in in_child(function)
    assert [user.name for user in User.select()] == ["ann"]
    with db.atomic():
        User.create(name="cid")
        assert "SandboxLimit" in in_child(write)
    assert User.select().count() == 2

@pytest.mark.dbclone(reset="truncate")
def test_for_real(dbclone):
    User.create(name="ann")
    db.close()
    assert in_child(write) == "wrote"
    assert {user.name for user in User.select()} == {"ann", "bob"}

def test_nothing_is_left(dbclone):
    assert User.select().count() == 0
"""


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_child_that_uses_the_applications_handle_works_or_is_told_why_not(
    project: Project, driver: str
) -> None:
    """D13: never an empty table, never a word of the child in the parent's conversation with the
    server."""
    project.write(test_a=USE)
    if driver == "psycopg2":
        models = (project.folder / "models.py").read_text()
        project.write(models=models.replace("prefer_psycopg3=True", ""))
    done = project.pytest("-q")
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


FALLS = """
import os, pytest
from models import User

@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])
def test_forks(dbclone_worker, reset):
    with dbclone_worker.isolated(reset, "test"):
        User.create(name="ann")
        child = os.fork()
        if not child:
            raise RuntimeError("the child goes on as a second pytest")
        assert os.waitpid(child, 0)[1] != 0
        assert User.select().count() == 1

def test_next(dbclone):
    assert User.select().count() == 0
"""


def test_a_child_that_goes_on_as_a_second_pytest_disturbs_nobody(project: Project) -> None:
    """D13: what happens when a test forks and the child raises: it runs all other tests, and every
    teardown."""
    project.write(test_a=FALLS)
    done = project.pytest("-q", "-p", "no:randomly", "--tb=line")
    assert done.returncode == 0, done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("4 passed"), done.stdout
