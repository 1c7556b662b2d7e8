"""A reset never waits for ever: who is in the way is named, with its test, or ended (C1, C2, C3,
C17, B11)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from dbclone import ResetBlocked
from dbclone.clone.clone import Clone
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings

from ....oracle import fingerprint
from ....shop import cloned

WRITE = "INSERT INTO parent (name) VALUES ('leaked')"
LOCK = "LOCK TABLE child IN ACCESS EXCLUSIVE MODE"
ROW = "SELECT * FROM country WHERE code = 'de' FOR UPDATE"


@pytest.fixture(params=["fail", "terminate"])
def on_leak(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def impatient_clone(
    server: Server, settings: Settings, tmp_path: Path, on_leak: str
) -> Iterator[Clone]:
    with cloned(server, settings, tmp_path, lock_timeout=0.3, on_leak=on_leak) as made:
        yield made


def leak(clone: Clone, test: str, *statements: str) -> psycopg.Connection[tuple[object, ...]]:
    """Return a session of the application, as libpq makes it while a test runs, in an open
    transaction."""
    connection = psycopg.connect(clone.url)
    for statement in statements:
        connection.execute(statement.encode())
    return connection


@pytest.mark.parametrize(
    "statements",
    [(WRITE,), (WRITE, LOCK), (LOCK,), (WRITE, ROW), ("SELECT nextval('free')", WRITE)],
)
def test_a_session_left_in_a_transaction(
    impatient_clone: Clone, on_leak: str, statements: tuple[str, ...]
) -> None:
    """C1: it stops the reset with an error that names it and its test, or is ended; the next test
    starts clean anyway."""
    truth = fingerprint(impatient_clone.url)
    leaked = []

    def test() -> None:
        with impatient_clone.isolated("truncate", "tests/test_a.py::test_leaks") as isolation:
            isolation.execute("UPDATE country SET name = name || '!' WHERE code <> 'de'")
            isolation.execute("INSERT INTO audit (what) VALUES ('x')")
            leaked.append(leak(impatient_clone, "tests/test_a.py::test_leaks", *statements))

    if on_leak == "fail":
        with pytest.raises(ResetBlocked) as caught:
            test()
        error = caught.value
        assert impatient_clone.name in error.message
        assert "0.3 s" in error.message
        assert str(leaked[0].info.backend_pid) in error.message
        for part in (
            "tests/test_a.py::test_leaks",
            "idle in transaction",
            statements[-1],
            str(leaked[0].info.user),
        ):
            assert part in error.detail
        assert 'on_leak = "terminate"' in error.hint
    else:
        test()
        assert any(
            "tests/test_a.py::test_leaks" in note and "ended a session" in note
            for note in impatient_clone.report.notes
        )
    assert fingerprint(impatient_clone.url) == truth
    with impatient_clone.isolated("truncate", "next") as isolation:
        assert isolation.execute("SELECT count(*) FROM parent").fetchall() == [(0,)]
    with pytest.raises(psycopg.Error):
        leaked[0].execute("SELECT 1")
    leaked[0].close()


def test_a_session_that_only_read_is_in_nobodys_way(impatient_clone: Clone) -> None:
    with impatient_clone.isolated("truncate", "reader"):
        reader = leak(impatient_clone, "reader", "SELECT count(*) FROM parent")
        with psycopg.connect(impatient_clone.url) as writer:
            writer.execute(WRITE)
    assert reader.execute("SELECT count(*) FROM parent").fetchone() == (0,)
    reader.close()


def test_a_writer_that_ends_in_time_is_waited_for(impatient_clone: Clone) -> None:
    """A background thread that commits after the test is over (C17): what it wrote is gone for the
    next test."""
    truth = fingerprint(impatient_clone.url)
    impatient_clone.server.settings = replace(impatient_clone.server.settings, lock_timeout=20)
    began, over = threading.Event(), threading.Event()

    def work() -> None:
        with psycopg.connect(impatient_clone.url) as connection:
            connection.execute(WRITE)
            began.set()
            over.wait(10)

    thread = threading.Thread(target=work)
    with impatient_clone.isolated("truncate", "background"):
        thread.start()
        assert began.wait(10)
        threading.Timer(0.2, over.set).start()
    thread.join()
    assert fingerprint(impatient_clone.url) == truth


def test_a_prepared_transaction_is_rolled_back(impatient_clone: Clone) -> None:
    truth = fingerprint(impatient_clone.url)
    with impatient_clone.isolated("truncate", "two phases"):
        with psycopg.connect(impatient_clone.url, autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute(WRITE)
            connection.execute(LOCK)
            connection.execute("PREPARE TRANSACTION 'forgotten'")
    assert fingerprint(impatient_clone.url) == truth
    assert impatient_clone.server.fetch("SELECT count(*) FROM pg_prepared_xacts") == [(0,)]


def test_a_reset_that_deadlocks_is_tried_again(impatient_clone: Clone) -> None:
    """A thread that writes all the time, in the order that is the wrong one for the reset (C3)."""
    truth = fingerprint(impatient_clone.url)
    stop = threading.Event()

    def work() -> None:
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(impatient_clone.url, autocommit=True) as connection,
        ):
            while not stop.is_set():
                with contextlib.suppress(
                    psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation
                ):
                    connection.execute(
                        "WITH p AS (INSERT INTO parent (name) VALUES (random()::text) RETURNING id)"
                        " INSERT INTO child (parent) SELECT id FROM p"
                    )

    thread = threading.Thread(target=work)
    with contextlib.suppress(ResetBlocked), impatient_clone.isolated("truncate", "busy"):
        thread.start()
    stop.set()
    thread.join()
    with impatient_clone.isolated("truncate", "after"):
        pass
    assert fingerprint(impatient_clone.url) == truth


def test_where_rights_do_not_suffice_the_clone_is_replaced(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn
) -> None:
    """A superuser's session in a plain role's clone, which its owner may not end: work goes on in
    another database."""
    with (
        Server.open(replace(settings), role) as plain,
        cloned(plain, settings, tmp_path, lock_timeout=0.3, on_leak="terminate") as clone,
    ):
        truth = fingerprint(server.database(clone.name).url)
        moves: list[Dsn] = []
        clone.on_move = moves.append
        foreign = psycopg.connect(server.database(clone.name).url)
        with clone.isolated("truncate", "foreign"):
            foreign.execute(WRITE)
        assert [move.get("dbname") for move in moves] == [clone.name]
        assert any("may not be ended" in note for note in clone.report.notes)
        assert fingerprint(server.database(clone.name).url) == truth
        with clone.isolated("truncate", "after") as isolation:
            assert isolation.execute("SELECT count(*) FROM parent").fetchall() == [(0,)]
        foreign.close()


def test_what_a_role_may_not_see_of_a_session_is_said_with_the_grant_that_shows_it(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn
) -> None:
    """E18: process id, user and test are there for everybody; the state and statement of another
    role's session are not."""

    def detail(clone: Clone) -> str:
        foreign = None

        def test() -> None:
            nonlocal foreign
            with clone.isolated("truncate", "a test"):
                foreign = psycopg.connect(server.database(clone.name).url)
                foreign.execute(WRITE)

        with pytest.raises(ResetBlocked) as caught:
            test()
        assert foreign is not None
        assert (
            f"Session {foreign.info.backend_pid} of user {foreign.info.user} was opened by a test"
            in caught.value.detail
        )
        foreign.close()
        return caught.value.detail

    with (
        Server.open(replace(settings), role) as plain,
        cloned(plain, settings, tmp_path, lock_timeout=0.3) as clone,
    ):
        grant = f'GRANT pg_read_all_stats TO "{role.get("user")}";'
        hidden = detail(clone)
        assert grant in hidden
        assert "insufficient" not in hidden
        server.connection.execute(grant.encode())
        seen = detail(clone)
        assert "idle in transaction" in seen
        assert WRITE in seen


BUSY = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("INSERT INTO parent (name) VALUES ('leaked')")
    connection.execute("LOCK TABLE child IN ACCESS EXCLUSIVE MODE")
    print(connection.info.backend_pid, flush=True)
    connection.execute("SELECT pg_sleep(600)")
"""


def test_a_busy_session_of_a_killed_client_ends_in_time(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """C2: the private server looks every second whether the clients of running statements are still
    there."""
    with cloned(server, settings, tmp_path, lock_timeout=30) as clone:
        truth = fingerprint(clone.url)
        with clone.isolated("truncate", "busy"):
            client = subprocess.Popen(
                [sys.executable, "-c", BUSY, clone.url], stdout=subprocess.PIPE, text=True
            )
            assert client.stdout is not None
            pid = int(client.stdout.readline())
            sleeping = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event = 'PgSleep'"
            while not server.fetch(sleeping, [pid]):
                assert client.poll() is None
            client.kill()
            client.wait()
            client.stdout.close()
        assert not server.fetch("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
        assert fingerprint(clone.url) == truth
