"""`server stop` spares whoever uses the private server, and says who; scripts leave nothing behind,
however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import dbclone
from dbclone.cli.main import main
from dbclone.errors import ServerError
from dbclone.runner import single_process
from dbclone.server.locks import lock_key
from dbclone.server.private import embedded
from dbclone.server.private.embedded import USERS_KEY, Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ...conftest import Project
from ...faults.stops import until
from ...private import own_server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]) -> Iterator[Settings]:
    """Settings of a server that is only these tests'."""
    with own_server(tmp_path_factory.mktemp("stopping"), options) as found:
        yield found


@pytest.fixture
def words(place: Settings) -> list[str]:
    """The words of a command that lead to that server."""
    binaries = ["--binaries", place.binaries] if place.binaries else []
    return ["--cache-dir", str(place.cache_dir), *binaries]


def runs(place: Settings) -> bool:
    return Embedded.locate(place).cluster.pid() is not None


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Have a stop refused; return what it said."""
    assert main(["server", "stop", *words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dbclone.ServerError: the private server is in use by ")
    assert (
        "HINT:  Wait for them. If they are to end with it: python -m dbclone server stop --force"
        in said.err
    )
    return said.err


def test_a_run_is_not_stopped_under_way_and_goes_on(
    place: Settings, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tests would fail with "terminating connection due to administrator command"."""
    with Server.open(place) as user:
        said = refused(words, capsys)
        assert "in use by 1 session\n" in said
        assert (
            f"(server process {user.fetch('SELECT pg_backend_pid()')[0][0]}, in database"
            f" postgres, for " in said
        )
        user.fetch("SELECT 1")
        assert user.fetch(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"
        ) == [(0,)]
    assert not runs(place), "the last one to leave stops it, as always"


def test_runs_are_counted(
    project: Project, server: Server, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Clones whose lease is held say of which run they are."""
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text("CREATE TABLE item (id int);")
    settings = load(project.folder, options, {})
    words = [
        word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)
    ]
    with (
        single_process(settings, "gw0", "one") as (_, first),
        single_process(settings, "gw0", "two") as (_, second),
    ):
        said = refused(words, capsys)
        assert ": 2 runs are alive\n" in said
        for clone in (first, second):
            with clone.isolated("truncate", "test") as isolation:
                isolation.execute("INSERT INTO item VALUES (1)")


@pytest.mark.parametrize("kept", [False, True])
def test_somebody_who_only_looks_uses_it_too(
    place: Settings, words: list[str], kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A developer's psql knows nothing of our locks; a server that was to stay, stays one."""
    with Server.open(place) as server:
        assert server.embedded is not None
        server.embedded.keep(kept)
        url = server.dsn.url
        look = psycopg.connect(url, application_name="psql of Ann", autocommit=True)
    assert runs(place)
    with look:
        said = refused(words, capsys)
        assert "psql of Ann (server process " in said
        assert "not dbclone's" in said
        assert Embedded.locate(place).is_kept() == kept
        look.execute("SELECT 1")
    assert main(["server", "stop", *words]) == 0
    assert not runs(place)


def test_who_means_it_ends_them_all(
    place: Settings, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server.open(place)
    try:
        assert main(["server", "stop", "--force", "--json", *words]) == 0
        assert json.loads(capsys.readouterr().out)["running"] is False
        assert not runs(place)
        with pytest.raises(psycopg.OperationalError):
            server.fetch("SELECT 1")
    finally:
        server.close()
    assert main(["server", "stop", *words]) == 0, "one that does not run is stopped"


def test_a_server_that_nobody_uses_is_stopped_and_is_not_kept_any_more(
    place: Settings, words: list[str]
) -> None:
    assert main(["server", "start", *words]) == 0
    assert runs(place)
    assert main(["server", "stop", *words]) == 0
    assert not runs(place)
    assert not Embedded.locate(place).is_kept()


def test_a_server_that_does_not_answer_is_not_taken_for_one_that_nobody_uses(
    place: Settings, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped postmaster, as of a machine that sleeps."""
    with Server.open(place) as server:
        assert server.embedded is not None
        pid = server.embedded.cluster.pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            assert main(["server", "stop", "--connect-timeout", "2", *words]) == 1
        finally:
            os.kill(pid, signal.SIGCONT)
        said = capsys.readouterr().err
        assert f"who uses the private server (process {pid}) cannot be found out" in said
        assert "python -m dbclone server stop --force" in said
        server.fetch("SELECT 1")


def test_somebody_who_began_to_stop_it_and_does_not_go_on_is_named(
    place: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wait is without a bound: who joins waits for the lock of whoever stops the server."""
    monkeypatch.setattr(embedded, "_STANDSTILL", 200)
    with Server.open(place) as server:
        with psycopg.connect(
            server.dsn.url, autocommit=True, application_name="a stopper"
        ) as stopper:
            server.connection.execute("SELECT pg_advisory_unlock_shared(%s)", [USERS_KEY])
            stopper.execute("SELECT pg_advisory_lock(%s)", [USERS_KEY])
            with pytest.raises(
                ServerError, match=r"has begun to stop the private server .* and does not go on"
            ) as caught:
                Server.open(replace(place, connect_timeout=1.0))
            assert (
                f"a stopper (server process {stopper.info.backend_pid}, for " in caught.value.detail
            )
        server.connection.execute("SELECT pg_advisory_lock_shared(%s)", [USERS_KEY])
        Server.open(place).close()


SCRIPT = """
import os, sys, dbclone
with dbclone.prepare() as template:
    for act in sys.argv[1:]:
        clone = template.clone()
        clone.__enter__()
        with clone.isolated(act if act in ("clone", "truncate") else "truncate") as isolation:
            isolation.execute("INSERT INTO item VALUES (1)")
            if act == "snapshot":
                isolation.snapshot("label")
            if act.startswith("signal"):
                os.kill(os.getpid(), int(act[6:]))
        if act == "exit":
            os._exit(0)
        clone.drop()
"""


@pytest.fixture
def script(project: Project) -> Project:
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text("CREATE TABLE item (id int);")
    (project.folder / "script.py").write_text(SCRIPT)
    return project


def run(project: Project, *acts: str, environ: Mapping[str, str] = {}) -> int:
    done = subprocess.run(
        [sys.executable, "script.py", *acts],
        cwd=project.folder,
        env={**project.environ, **environ},
        capture_output=True,
        timeout=120,
    )
    return done.returncode


def test_scripts_that_die_leave_nothing_that_the_next_does_not_clear_away(
    script: Project, server: Server
) -> None:
    """SIGKILL, SIGTERM, SIGQUIT, an exit that cleans nothing up; a clone, two, a snapshot, a warm
    pool."""
    assert run(script) == 0
    template = script.databases(server)
    assert len(template) == 1
    for acts in (
        ["signal9"],
        ["signal15"],
        ["signal3"],
        ["exit"],
        ["truncate", "snapshot", "clone", "clone", "signal9"],
    ):
        run(script, *acts)
        assert len(script.databases(server)) > 1
        _nobody_left(server, script)
    assert run(script) == 0, "which makes no clone"
    assert script.databases(server) == template


def test_a_script_that_lives_long_clears_away_what_others_leave_meanwhile(
    script: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each clone, and as it ends."""
    more: dict[str, Any] = {"cache_dir": script.environ["DBCLONE_CACHE_DIR"]}
    if "DBCLONE_BINARIES" in script.environ:
        more["binaries"] = script.environ["DBCLONE_BINARIES"]
    monkeypatch.chdir(script.folder)
    template = dbclone.prepare(**more)
    run(script, "signal9")
    _nobody_left(server, script)
    with template.clone() as clone:
        assert script.clones(server) == [clone.name]
    run(script, "exit")
    _nobody_left(server, script)
    template.close()
    assert script.clones(server) == []


def _nobody_left(server: Server, project: Project) -> None:
    """Wait until the server has noticed the end of all who had clones of a project."""

    def free() -> bool:
        held = server.leases.held()
        return not server.fetch(
            "SELECT FROM pg_stat_activity WHERE datname = ANY(%s)", [project.databases(server)]
        ) and not any(lock_key(name) in held for name in project.clones(server))

    until(free)


def test_the_private_server_of_a_killed_script_is_stopped_by_the_next(
    script: Project, place: Settings
) -> None:
    environ = {"DBCLONE_CACHE_DIR": str(place.cache_dir)}
    assert run(script, "signal9", environ=environ) == -signal.SIGKILL
    assert runs(place)
    assert run(script, environ=environ) == 0
    assert not runs(place)
