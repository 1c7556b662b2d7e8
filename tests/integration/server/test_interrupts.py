"""Ctrl-C at any moment of a statement: the connection can be used for cleaning up, and the
interrupt is what is seen."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from dbclone.server.server import Server

from ...conftest import Project

# Interrupts come from a timer, at moments that spread over the statement: in Python, in libpq,
# while it waits.
SWEEP = """
import signal, sys
import psycopg
from dbclone.server.connection import Interruptible, connect
from dbclone.server.dsn import parse

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
connection = connect(parse(sys.argv[1]), Interruptible, autocommit=True)
process = connection.info.backend_pid
rounds, interrupted = int(sys.argv[2]), 0
for number in range(rounds):
    try:
        signal.setitimer(signal.ITIMER_REAL, (1 + number % 40) * 1e-5)
        while True:
            connection.execute("SELECT 1").fetchall()
    except KeyboardInterrupt:
        interrupted += 1
    assert connection.execute("SELECT %s", [number]).fetchall() == [(number,)]
assert connection.info.backend_pid == process
print(interrupted)
"""


def test_a_statement_can_follow_whenever_the_interrupt_came(
    project: Project, server: Server
) -> None:
    rounds = 400
    project.write(sweep=SWEEP)
    done = project.run("sweep", server.dsn.url, str(rounds), timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, str(rounds)), done.stderr


@pytest.mark.parametrize("query", ["SELECT pg_sleep(600)", "COPY (SELECT 1) TO STDOUT", "SELECT 1"])
def test_interrupted_between_sending_and_waiting(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """The moment in which psycopg cannot go on with what it has begun."""

    def sent(cursor: psycopg.Cursor[Any], *arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        cursor._execute_send(*arguments, **options)
        raise KeyboardInterrupt

    with server.connect(server.maintenance, "test") as connection:
        process = connection.info.backend_pid
        monkeypatch.setattr(psycopg.Cursor, "_execute_send", sent)
        with pytest.raises(KeyboardInterrupt):
            connection.execute(query.encode())
        assert connection.execute("SELECT pg_backend_pid()").fetchall() == [(process,)]


LIMITED = r"""
import signal
import pytest
from models import User

def limit(*_):
    raise TimeoutError("the test takes too long")

@pytest.mark.parametrize("go_on", [False, True])
def test_slow(dbclone, go_on):
    connection = dbclone.connect(autocommit=go_on)
    connection.execute("INSERT INTO \"user\" (name) VALUES ('left')")
    signal.signal(signal.SIGALRM, limit)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    connection.execute("INSERT INTO \"user\" (name) SELECT 'late' FROM pg_sleep(600)")

@pytest.mark.parametrize("again", [False, True])
def test_next(dbclone, again):
    assert User.select().count() == 0
    assert dbclone.connect().execute("SELECT count(*) FROM \"user\"").fetchall() == [(0,)]
"""


@pytest.mark.parametrize("reset", ["rollback", "truncate"])
def test_a_limit_on_the_time_of_a_test_costs_no_clone(project: Project, reset: str) -> None:
    """Plugins that limit a test's time raise from a signal's handler, in the middle of whatever
    statement runs."""
    project.write(test_a=LIMITED)
    done = project.pytest("-rA", f"--dbclone-reset={reset}", timeout=60)
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert (
        len(re.findall(r"^FAILED .* - TimeoutError: the test takes too long$", done.stdout, re.M))
        == 2
    ), done.stdout
    assert "replaced" not in done.stdout
    assert "1 clone" in done.stdout


EARLY = """
import runpy, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "psycopg":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.argv = ["dbclone", "status"]
runpy.run_module("dbclone", run_name="__main__")
"""


def test_interrupted_while_its_modules_are_imported(project: Project) -> None:
    project.write(early=EARLY)
    done = project.run("early", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
