"""The server as a whole run sees it: which one, as whom, with what settings; and every way in which
it refuses us."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.errors import OutOfConnections, PermissionMissing, ServerError, ServerNotFound
from dbclone.server.connect import describe_self
from dbclone.server.dsn import Dsn
from dbclone.server.private import cluster
from dbclone.server.private.cluster import Cluster
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import load

from ... import developer
from ...faults.stops import until
from ...private import own_server

SECRET = "s3cr3t-c4n4ry"


@pytest.fixture(scope="module")
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Servers' processes, to be waited for at the end."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.wait()


@pytest.fixture(scope="module")
def outside(
    tmp_path_factory: pytest.TempPathFactory,
    options: dict[str, str],
    processes: list[subprocess.Popen[bytes]],
) -> Iterator[Cluster]:
    """A server that is not dbclone's, with few connections and a role `guarded` that needs a
    password; it can have a standby."""
    with (
        own_server(tmp_path_factory.mktemp("outside"), options) as settings,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setitem(cluster._THROW_AWAY, "wal_level", "replica")
        patch.setitem(cluster._THROW_AWAY, "max_connections", "12")
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        made = located.cluster
        made.init()
        rules = made.data / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        processes.append(made.start(60))
        with psycopg.connect(located.dsn.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE guarded LOGIN CREATEDB PASSWORD {}").format(SECRET)
            )
            connection.execute("CREATE ROLE humble LOGIN")
            connection.execute("CREATE ROLE barred LOGIN CREATEDB")
            connection.execute("CREATE DATABASE home")
            connection.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
            connection.execute("GRANT CONNECT ON DATABASE postgres TO guarded, humble")
        with developer.databases(located.dsn.url):
            yield made


def at(outside: Cluster, user: str = "postgres", **more: str) -> Dsn:
    return Dsn((("host", str(outside.socket)), ("port", "5432"), ("user", user), *more.items()))


def opened(tmp_path: Path, dsn: Dsn | str, **more: str) -> Server:
    return Server.open(
        load(tmp_path, {"url": dsn.url if isinstance(dsn, Dsn) else dsn, **more}, {})
    )


def test_a_url_leads_to_a_running_server_which_is_left_running(
    tmp_path: Path, outside: Cluster
) -> None:
    with opened(tmp_path, at(outside)) as server:
        assert server.embedded is None
        assert server.fetch("SELECT current_database()::text") == [("postgres",)]
        assert server.version.startswith(f"{outside.binaries.major}.")
        with server.connect("home", "test") as connection:
            assert connection.info.dbname == "home"
    assert server.connection.closed
    assert outside.pid() is not None


def test_libpqs_variables_lead_there_too(
    tmp_path: Path, outside: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server filled in is in the Dsn, for a process that does not have these variables."""
    for name, value in {
        "PGHOST": str(outside.socket),
        "PGPORT": "5432",
        "PGUSER": "postgres",
        "PGDATABASE": "home",
    }.items():
        monkeypatch.setenv(name, value)
    with Server.open(load(tmp_path, {}, {})) as server:
        assert server.embedded is None
        assert server.fetch("SELECT current_database()::text") == [("postgres",)]
        assert {key: server.dsn.get(key) for key in ("host", "port", "user")} == dict(
            at(outside).params
        )


def test_a_service_leads_there_too(
    tmp_path: Path, outside: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text(f"[mine]\nhost={outside.socket}\nport=5432\nuser=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "mine")
    with Server.open(load(tmp_path, {}, {})) as server:
        assert server.embedded is None
        assert server.dsn.get("host") == str(outside.socket)


def test_the_url_is_preferred_to_libpqs_variables(
    tmp_path: Path, outside: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOST", "/nonexistent")
    monkeypatch.setenv("PGUSER", "nobody_there")
    with opened(tmp_path, at(outside)) as server:
        assert server.facts.role == "postgres"


def test_a_password_in_the_url_works_and_is_nowhere_shown(tmp_path: Path, outside: Cluster) -> None:
    """S7, S8."""
    with opened(tmp_path, at(outside, "guarded", password=SECRET)) as server:
        assert server.facts.role == "guarded"
        assert SECRET not in server.where + str(server.dsn) + repr(server.dsn)
        assert SECRET in server.database("home").url


@pytest.mark.parametrize("password", [f"{SECRET} wrong", f"{SECRET}@/:%", ""])
def test_a_wrong_password_is_an_error_that_does_not_show_it(
    tmp_path: Path, outside: Cluster, password: str
) -> None:
    """S7: not in the text, and not in an error behind it that a traceback would print."""
    with pytest.raises(ServerError, match="the server refused us") as caught:
        opened(
            tmp_path,
            at(outside, "guarded", password=password) if password else at(outside, "guarded"),
        )
    error: BaseException | None = caught.value
    assert error is not None
    assert "PGPASSWORD" in caught.value.hint
    assert SECRET not in str(error) + repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_role_without_createdb_is_told_what_it_lacks(tmp_path: Path, outside: Cluster) -> None:
    with pytest.raises(PermissionMissing, match="role 'humble' may not create databases") as caught:
        opened(tmp_path, at(outside, "humble"))
    assert 'ALTER ROLE "humble" CREATEDB;' in caught.value.hint


def test_a_refused_server_has_no_session_of_ours_left(tmp_path: Path, outside: Cluster) -> None:
    query = "SELECT 1 FROM pg_stat_activity WHERE usename = 'humble'"
    with opened(tmp_path, at(outside)) as server:
        with pytest.raises(PermissionMissing):
            opened(tmp_path, at(outside, "humble"))
        until(lambda: not server.fetch(query))


def test_who_may_not_enter_the_maintenance_database_uses_the_urls_own(
    tmp_path: Path, outside: Cluster
) -> None:
    with opened(tmp_path, at(outside, "barred", dbname="home")) as server:
        assert server.fetch("SELECT current_database()::text") == [("home",)]


@pytest.mark.parametrize("more", [{}, {"dbname": "postgres"}])
def test_who_may_enter_no_database_is_told_the_grant(
    tmp_path: Path, outside: Cluster, more: dict[str, str]
) -> None:
    with pytest.raises(PermissionMissing, match="cannot enter database 'postgres'") as caught:
        opened(tmp_path, at(outside, "barred", **more))
    assert 'GRANT CONNECT ON DATABASE "postgres"' in caught.value.hint


def test_a_maintenance_database_that_is_not_there_is_done_without(
    tmp_path: Path, outside: Cluster
) -> None:
    with opened(tmp_path, at(outside)) as server, server.connect("home", "test") as inside:
        server.connection.close()
        until(
            lambda: (
                inside.execute("SELECT FROM pg_stat_activity WHERE datname = 'postgres'").fetchone()
                is None
            )
        )
        inside.execute("ALTER DATABASE postgres RENAME TO away")
        try:
            with opened(tmp_path, at(outside, dbname="home")) as other:
                assert other.fetch("SELECT current_database()::text") == [("home",)]
        finally:
            inside.execute("ALTER DATABASE away RENAME TO postgres")


def test_a_full_server_is_told_from_one_that_is_not_there(tmp_path: Path, outside: Cluster) -> None:
    """B8."""
    crowd: list[psycopg.Connection[tuple[object, ...]]] = []
    try:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                crowd.append(psycopg.connect(at(outside, dbname="home").url))
        with pytest.raises(OutOfConnections, match="no connection is left"):
            opened(tmp_path, at(outside))
    finally:
        for connection in crowd:
            connection.close()
    with opened(tmp_path, at(outside)) as server:
        until(
            lambda: (
                server.fetch("SELECT count(*)::int FROM pg_stat_activity WHERE datname = 'home'")
                == [(0,)]
            )
        )


def test_nobody_listening_is_an_error_with_the_ways_out(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and never listens
        url = f"postgresql://me:{SECRET}@127.0.0.1:{held.getsockname()[1]}/x"
        with pytest.raises(ServerNotFound, match="no server answers at postgresql://me:") as caught:
            opened(tmp_path, url)
    assert SECRET not in str(caught.value)
    assert "leave both out to use a private server" in caught.value.hint


def test_who_accepts_and_never_answers_is_given_up(tmp_path: Path) -> None:
    """Promise 6: no wait is without limit."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"postgresql://me@127.0.0.1:{deaf.getsockname()[1]}/postgres"
        with pytest.raises(ServerNotFound, match="no server answers"):
            opened(tmp_path, url, connect_timeout="0.1")


def test_settings_of_role_and_database_do_not_reach_our_statements(
    tmp_path: Path, outside: Cluster
) -> None:
    """S18; a role for reading has default_transaction_read_only, a careful one statement_timeout."""
    ours = {
        "search_path": "pg_catalog",
        "default_transaction_read_only": "off",
        "lock_timeout": "1min",
    }
    ours |= {
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "tcp_user_timeout": "0",
    }
    with opened(tmp_path, at(outside)) as server:
        theirs = {
            "search_path": "evil", "default_transaction_read_only": "on", "statement_timeout": "1", "lock_timeout": "1",
            "idle_session_timeout": "1h", "idle_in_transaction_session_timeout": "1h", "tcp_user_timeout": "77",
        }  # fmt: skip
        if server.facts.major >= 17:
            ours, theirs = (
                {**ours, "transaction_timeout": "0"},
                {**theirs, "transaction_timeout": "1h"},
            )
        for name, value in theirs.items():
            server.connection.execute(
                sql.SQL("ALTER ROLE guarded SET {} = {}").format(sql.Identifier(name), value)
            )
        try:
            with (
                opened(tmp_path, at(outside, "guarded", password=SECRET)) as guarded,
                guarded.connect("home", "test") as other,
            ):
                # What is asked of the administrative session has a limit all the same: that of a
                # build.
                for connection, limit in ((guarded.connection, "10min"), (other, "0")):
                    asked = {**ours, "statement_timeout": limit}
                    shown = {
                        name: connection.execute(
                            sql.SQL("SHOW {}").format(sql.Identifier(name))
                        ).fetchone()
                        for name in asked
                    }
                    assert shown == {name: (value,) for name, value in asked.items()}
        finally:
            server.connection.execute("ALTER ROLE guarded RESET ALL")


def test_options_in_the_url_stay(tmp_path: Path, outside: Cluster) -> None:
    """S23."""
    with (
        opened(tmp_path, at(outside, options="-c work_mem=77MB")) as server,
        server.connect("home", "test") as connection,
    ):
        assert connection.execute("SHOW work_mem").fetchone() == ("77MB",)


def test_a_session_says_whose_it_is(tmp_path: Path, outside: Cluster) -> None:
    with opened(tmp_path, at(outside)) as server, server.connect("home", "test of names"):
        names = server.fetch("SELECT application_name FROM pg_stat_activity WHERE datname = 'home'")
        assert names == [(describe_self("test of names"),)]
        assert f":{os.getpid()}" in names[0][0]


def test_a_session_of_a_host_with_an_odd_name_keeps_its_process_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ünï\n" * 30)
    described = describe_self("copy")
    assert described.isascii()
    assert described.isprintable()
    assert len(described) <= 63
    assert described.endswith(f":{os.getpid()}")


def test_a_standby_is_refused_by_name(
    tmp_path: Path, outside: Cluster, processes: list[subprocess.Popen[bytes]]
) -> None:
    """S3."""
    outside.stop()
    twin = Cluster(
        outside.folder.with_name("standby"),
        outside.folder.with_name("standby"),
        outside.binaries,
        outside.account,
    )
    shutil.copytree(outside.folder, twin.folder, symlinks=True)
    for path in (twin.folder, *twin.folder.rglob("*")):
        shutil.chown(path, outside.account.uid, outside.account.gid)
    (twin.data / "standby.signal").touch()
    twin.log.unlink()
    processes.append(twin.start(60))
    try:
        with pytest.raises(ServerError, match="is in recovery") as caught:
            opened(tmp_path, at(twin))
        assert caught.value.hint == "Use its primary."
    finally:
        twin.stop()
        shutil.rmtree(twin.folder)
        processes.append(outside.start(60))


def test_the_private_server_is_used_when_nothing_else_is_named(server: Server) -> None:
    assert server.embedded is not None
    assert server.where == "the private server"
    assert not server.facts.durable
