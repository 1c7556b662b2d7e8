"""The private server's life among its users: made once, started, joined, left, and stopped by the
last of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from filelock import FileLock

from dbclone.errors import OutOfConnections, ServerError
from dbclone.server.private import cluster
from dbclone.server.private.embedded import USERS_KEY, Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ....faults.stops import until
from ....private import Start, others, own_server, settings_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]) -> Iterator[Settings]:
    """Settings of a server that is only these tests', made by the first of them."""
    with own_server(tmp_path_factory.mktemp("place"), options) as found:
        yield found


@pytest.fixture
def own(place: Settings) -> Iterator[Settings]:
    """Settings of that server, which does not run before the test."""
    Embedded.locate(place).cluster.stop()
    yield place
    Embedded.locate(place).keep(False)


@pytest.fixture
def start() -> Iterator[Start]:
    with others() as starter:
        yield starter


def running(settings: Settings) -> bool:
    return Embedded.locate(settings).cluster.pid() is not None


def embedded(server: Server) -> Embedded:
    assert server.embedded is not None
    return server.embedded


def exclusively_held(connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Return whether somebody who leaves has got the users' lock."""
    query = (
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted"
    )
    return connection.execute(query).fetchone() is not None


def test_it_is_made_at_the_first_use_started_at_the_next_and_joined_while_it_runs(
    tmp_path: Path, options: dict[str, str]
) -> None:
    with own_server(tmp_path, options) as settings:
        assert not Embedded.locate(settings).cluster.exists()
        with Server.open(settings) as cold:
            assert embedded(cold).started
            system = cold.facts.system
        assert not running(settings)
        with Server.open(settings) as warm, Server.open(settings) as hot:
            assert embedded(warm).started
            assert not embedded(hot).started
            assert warm.facts.system == hot.facts.system == system
        assert not running(settings)


def test_looking_for_it_starts_and_makes_nothing(tmp_path: Path, options: dict[str, str]) -> None:
    settings = load(tmp_path, {**options, "cache_dir": str(tmp_path / "cache")}, {})
    located = Embedded.locate(settings)
    assert not located.home.exists()
    assert not located.is_kept()


def test_whoever_joins_a_running_server_does_not_wait_for_who_holds_the_file_lock(
    own: Settings,
) -> None:
    with Server.open(own) as first, FileLock(embedded(first).lock_path):
        with Server.open(own) as second:
            assert second.fetch("SELECT 1") == [(1,)]


def test_whoever_waits_too_long_for_the_file_lock_is_told_which_it_is(own: Settings) -> None:
    """Promise 6: no wait is without limit."""
    lock = Embedded.locate(own).lock_path
    hasty = load(own.root, {**settings_of(own), "connect_timeout": "0.05"}, {})
    with (
        FileLock(lock),
        pytest.raises(ServerError, match="another process has been starting") as caught,
    ):
        Server.open(hasty)
    assert str(lock) in caught.value.detail


def test_the_process_that_started_it_may_leave_first(own: Settings, start: Start) -> None:
    starter, joiner = start(settings_of(own)), start(settings_of(own))
    assert starter.ask("open")["started"] is True
    assert joiner.ask("open")["started"] is False
    assert starter.ask("close") is False
    starter.kill()
    assert joiner.ask("eval server.fetch('SELECT 1')") == [[1]]
    assert joiner.ask("close") is True


def test_two_who_leave_at_the_same_moment_do_stop_it(own: Settings) -> None:
    """The other one has given up its lock, and not yet found out that it is not the last, when this
    one asks whether it is."""
    first, second = Server.open(own), Server.open(own)
    stopped: list[bool] = []
    second.connection.execute("SELECT pg_advisory_unlock_shared(%s)", [USERS_KEY])
    leaving = threading.Thread(target=lambda: stopped.append(embedded(first).leave()))
    leaving.start()

    until(lambda: exclusively_held(second.connection) or not leaving.is_alive())
    assert second.fetch("SELECT pg_try_advisory_lock(%s)", [USERS_KEY]) == [(False,)]
    second.connection.close()
    leaving.join()
    assert stopped == [True]
    assert not running(own)


def test_connections_closed_just_before_do_not_keep_it_running(own: Settings) -> None:
    """A session ends a moment after its client has closed it: that moment must not leave a server
    behind."""
    for _ in range(3):
        server = Server.open(own)
        connections = [server.connect("postgres", "test") for _ in range(20)]
        for connection in connections:
            connection.close()
        server.close()
        assert not running(own)


def test_a_newcomer_who_meets_one_who_leaves_gets_a_server(own: Settings, start: Start) -> None:
    """The one who leaves holds the lock while a foreign session has to end; the newcomer waits for
    it, and then is a user."""
    server, newcomer = Server.open(own), start(settings_of(own))
    newcomer.ask("ready")
    with psycopg.connect(server.dsn.url, autocommit=True) as foreign:
        leaving = threading.Thread(target=server.close)
        leaving.start()
        until(lambda: exclusively_held(foreign) or not leaving.is_alive())
        joined = newcomer.ask("open")
        leaving.join()
    assert joined["started"] is False
    assert newcomer.ask("eval server.fetch('SELECT 1')") == [[1]]
    assert newcomer.ask("close") is True


def test_users_who_come_and_go_all_the_time_always_get_a_server_and_leave_none(
    own: Settings, start: Start
) -> None:
    users = [start(settings_of(own)) for _ in range(3)]
    for user in users:
        for _ in range(6):
            user.tell("open")
            user.tell("eval server.fetch('SELECT 1')")
            user.tell("close")
    for user in users:
        for _ in range(6):
            assert "system" in user.answer()
            assert user.answer() == [[1]]
            assert user.answer() in (True, False)
    assert not running(own)


def test_a_server_kept_by_a_setting_is_stopped_by_the_next_user_without_it(own: Settings) -> None:
    keeping = load(own.root, {**settings_of(own), "keep_server": "true"}, {})
    with Server.open(keeping):
        pass
    assert running(own)
    with Server.open(own) as server:
        assert not embedded(server).started
    assert not running(own)


def test_a_key_pressed_in_the_terminal_ends_its_user_and_not_the_server(
    own: Settings, start: Start
) -> None:
    """E10: an interrupt goes to the whole process group of the terminal."""
    user = start(settings_of(own), start_new_session=True, stderr=subprocess.DEVNULL)
    pid = user.ask("open")["pid"]
    with Server.open(own) as server:
        os.killpg(user.process.pid, signal.SIGINT)
        user.process.wait()
        assert server.fetch("SELECT 1") == [(1,)]
        assert embedded(server).cluster.pid() == pid
    assert not running(own)


def test_leaving_a_server_that_threw_us_out_is_no_error(own: Settings) -> None:
    server, other = Server.open(own), Server.open(own)
    other.fetch("SELECT pg_terminate_backend(%s, 10000)", [server.connection.info.backend_pid])
    server.close()
    assert other.fetch("SELECT 1") == [(1,)]
    other.close()
    assert not running(own)


def test_leaving_twice_is_no_error(own: Settings) -> None:
    server = Server.open(own)
    server.close()
    server.close()
    assert not running(own)


def test_a_full_server_says_that_it_is_full(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """B8: not that it does not answer, and not to end its process."""
    monkeypatch.setitem(cluster._THROW_AWAY, "max_connections", "5")
    hasty = load(own.root, {**settings_of(own), "connect_timeout": "0.1"}, {})
    with Server.open(own) as server:
        crowd = [server.connect("postgres", "test") for _ in range(4)]
        with pytest.raises(OutOfConnections, match="no connection is left"):
            Server.open(hasty)
        for connection in crowd:
            connection.close()
    assert not running(own)


def test_a_server_that_nobody_can_reach_is_named_in_bounded_time(own: Settings) -> None:
    """F4, promise 6; here a cleaner of old files has taken its socket."""
    hasty = load(own.root, {**settings_of(own), "connect_timeout": "0.1"}, {})
    with Server.open(own) as server:
        cluster = embedded(server).cluster
        (cluster.socket / ".s.PGSQL.5432").unlink()
        with pytest.raises(
            ServerError, match=rf"\(process {cluster.pid()}\) does not answer"
        ) as caught:
            Server.open(hasty)
        assert "Its socket is not there." in caught.value.detail
        assert server.fetch("SELECT 1") == [(1,)]
    assert not running(own)
