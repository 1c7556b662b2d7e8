"""PgBouncer between dbclone and the server: refused by name at every way in, before anything is
made; in nobody's way beside it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from dbclone.errors import ServerError, ServerNotFound
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import load

from ...conftest import Project
from ...faults.stops import until
from ...private import public_folder

PGBOUNCER = shutil.which(
    "pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"
)
OTHER_NUMBER = 4711
MODES = ("session", "transaction", "statement")

pytestmark = pytest.mark.skipif(
    PGBOUNCER is None, reason="no pgbouncer on this machine (Debian's package is pgbouncer)"
)


def answers(path: Path) -> bool:
    """Return whether somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


Start = Callable[..., Dsn]


@pytest.fixture(scope="module")
def start(server: Server) -> Iterator[Start]:
    """A function that starts a PgBouncer in front of the server and returns where it is.

    Its arguments: `mode`, pool_mode; `quiet`, ignore what PgBouncer would refuse in a startup
    message, as its manual advises; `at`, its list of databases, instead of any on the server;
    `more`, further settings.
    """
    assert server.embedded is not None
    account = server.embedded.cluster.account
    started: list[subprocess.Popen[bytes]] = []

    with public_folder() as above:

        def started_one(mode: str, quiet: bool = True, at: str = "", more: str = "") -> Dsn:
            folder = above / str(len(started))
            folder.mkdir()
            ini = folder / "pgbouncer.ini"
            (folder / "users").write_text('"postgres" ""\n')
            lines = [
                "[databases]",
                at or f"* = host={server.dsn.get('host')} port={server.dsn.get('port')}",
                "[pgbouncer]",
            ]
            lines += [
                f"unix_socket_dir = {folder}",
                "listen_port = 6432",
                f"auth_file = {folder}/users",
                "auth_type = trust",
            ]
            lines += [
                f"pool_mode = {mode}",
                f"logfile = {folder}/log",
                "ignore_startup_parameters = options" if quiet else "",
                more,
            ]
            ini.write_text("\n".join(lines) + "\n")
            if account.other:
                shutil.chown(folder, account.uid, account.gid)
            assert PGBOUNCER is not None
            process = subprocess.Popen(
                [PGBOUNCER, "-q", ini],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                **account.popen,
            )
            started.append(process)
            until(lambda: process.poll() is not None or answers(folder / ".s.PGSQL.6432"))
            assert process.poll() is None, (folder / "log").read_text()
            return Dsn((("host", str(folder)), ("port", "6432"), ("user", "postgres")))

        try:
            yield started_one
        finally:
            for process in started:
                process.kill()
                process.wait()


@contextlib.contextmanager
def relay(folder: Path, dsn: Dsn) -> Iterator[Dsn]:
    """Something between one client and the server that passes on everything but the number of the
    session."""

    def answer(client: socket.socket, real: socket.socket) -> None:
        with real.makefile("rb") as messages:
            while len(head := messages.read(5)) == 5:
                body = messages.read(int.from_bytes(head[1:], "big") - 4)
                client.sendall(
                    head
                    + (OTHER_NUMBER.to_bytes(4, "big") + body[4:] if head[:1] == b"K" else body)
                )

    def ask(door: socket.socket) -> None:
        client, real = door.accept()[0], socket.socket(socket.AF_UNIX)
        with client, real:
            real.connect(f"{dsn.get('host')}/.s.PGSQL.{dsn.get('port')}")
            answering = threading.Thread(target=answer, args=(client, real))
            answering.start()
            while said := client.recv(65536):
                real.sendall(said)
            real.shutdown(socket.SHUT_WR)
            answering.join()

    with tempfile.TemporaryDirectory(dir=folder) as place, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{place}/.s.PGSQL.6432")
        door.listen()
        asking = threading.Thread(target=ask, args=(door,))
        asking.start()
        yield dsn.replace(host=place, port="6432")
        asking.join()


@pytest.fixture(scope="module")
def quiet(start: Start) -> dict[str, Dsn]:
    """A PgBouncer of each mode that lets everybody in, whatever a startup message asks for."""
    return {mode: start(mode) for mode in MODES}


def refused(tmp_path: Path, dsn: Dsn) -> ServerError:
    """Return the error with which a pooler's URL is refused: of a pooler, by name, with what to do."""
    with pytest.raises(
        ServerError, match=r"^a connection pooler such as PgBouncer is in front of the server at "
    ) as caught:
        Server.open(load(tmp_path, {"url": dsn.url}, {}))
    assert type(caught.value) is ServerError
    assert caught.value.hint.startswith(
        "Use the direct port: let url (or PGHOST and PGPORT) name the PostgreSQL server itself"
    )
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize("mode", MODES)
def test_a_pooler_that_lets_us_in_is_refused_by_name(
    tmp_path: Path, quiet: dict[str, Dsn], mode: str
) -> None:
    """B20: the session that answers is not the one that was opened."""
    error = refused(tmp_path, quiet[mode])
    assert error.message.endswith(f" {quiet[mode].get('host')}:6432")
    assert "The session that answers is process" in error.detail


def test_a_pooler_as_it_is_installed_is_refused_by_name(tmp_path: Path, start: Start) -> None:
    """B20: it does not let anybody in who says something of the session to be, as we do."""
    assert (
        "unsupported startup parameter: options"
        in refused(tmp_path, start("transaction", quiet=False)).detail
    )


def test_a_pooler_that_knows_other_databases_only_is_refused_by_name(
    tmp_path: Path, server: Server, start: Start
) -> None:
    """B20: it has neither the maintenance database nor the one that the URL names."""
    dsn = start(
        "session",
        at=f"shop = host={server.dsn.get('host')} port={server.dsn.get('port')} dbname=postgres",
    )
    assert "no such database: postgres" in refused(tmp_path, dsn).detail
    refused(tmp_path, dsn.replace(dbname="shop"))


def test_a_pooler_that_is_full_is_refused_by_name(tmp_path: Path, start: Start) -> None:
    """B20: it lets nobody in, or lets them in and then lets them wait."""
    assert (
        "max_client_conn" in refused(tmp_path, start("session", more="max_client_conn = 0")).detail
    )
    dsn = start("session", more="default_pool_size = 1\nquery_wait_timeout = 1")
    with psycopg.connect(dsn.url, dbname="postgres") as held:
        held.execute("SELECT")
        assert "query_wait_timeout" in refused(tmp_path, dsn).detail


def test_libpqs_variables_that_lead_to_a_pooler_are_refused_too(
    tmp_path: Path, quiet: dict[str, Dsn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B20."""
    for key in ("host", "port", "user"):
        monkeypatch.setenv(f"PG{key.upper()}", quiet["session"].get(key))
    with pytest.raises(
        ServerError, match="a connection pooler such as PgBouncer is in front of the server"
    ):
        Server.open(load(tmp_path, {}, {}))


def test_a_run_through_a_pooler_ends_before_it_makes_anything(
    project: Project, server: Server, quiet: dict[str, Dsn]
) -> None:
    """B20: under pytest, with workers too, and by the command line; nothing is on the server, and
    nobody in it who was refused."""
    url = quiet["transaction"].url
    project.configure(url=url)
    project.write(test_a="def test_a(dbclone): ...")
    for command in (
        ("pytest", "-q"),
        ("pytest", "-q", "-n", "2"),
        ("dbclone", "prepare"),
        ("dbclone", "status"),
    ):
        done = project.run(*command)
        assert done.returncode != 0
        assert (
            "a connection pooler such as PgBouncer is in front of the server"
            in done.stdout + done.stderr
        )
        assert "Use the direct port" in done.stdout + done.stderr
    assert project.databases(server) == []


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_test_may_reach_its_clone_through_a_pooler_of_its_own(
    project: Project, server: Server, quiet: dict[str, Dsn], mode: str
) -> None:
    """B20: `url` is direct, and an application with connections of its own uses the pooler, which
    keeps some of them open."""
    project.configure(url=server.dsn.url)
    project.write(
        test_a="""
        import os, psycopg, pytest

        RESETS = [pytest.param(reset, marks=pytest.mark.dbclone(reset=reset)) for reset in ("truncate", "clone")]

        @pytest.mark.parametrize("reset", RESETS)
        @pytest.mark.parametrize("n", range(5))
        def test_a(dbclone, n, reset):
            with psycopg.connect(os.environ["POOLED"], dbname=dbclone.name, prepare_threshold=None) as pooled:
                assert pooled.execute('SELECT count(*) FROM "user"').fetchone() == (0,)
                pooled.execute('INSERT INTO "user" (name) VALUES (%s)', [str(n)])
            with dbclone.connect() as direct:
                assert direct.execute('SELECT name FROM "user"').fetchall() == [(str(n),)]
        """
    )
    done = project.pytest("-q", "-n", "2", POOLED=quiet[mode].url)
    assert "10 passed" in done.stdout, done.stdout + done.stderr
    assert project.clones(server) == []


def test_what_is_written_through_a_pooler_beside_a_sandbox_has_escaped(
    project: Project, server: Server, quiet: dict[str, Dsn]
) -> None:
    """B20: it is named, removed, and no test after it sees it."""
    project.configure(url=server.dsn.url, strict=True)
    project.write(
        test_a="""
        import os, psycopg
        from models import User

        def test_a(dbclone):
            with psycopg.connect(os.environ["POOLED"], dbname=dbclone.name, prepare_threshold=None) as pooled:
                pooled.execute("INSERT INTO \\"user\\" (name) VALUES ('ann')")

        def test_b(dbclone):
            assert User.select().count() == 0
        """
    )
    done = project.pytest("-q", POOLED=quiet["transaction"].url)
    assert "WriteEscaped" in done.stdout, done.stdout + done.stderr
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr


def test_a_relay_that_numbers_sessions_itself_is_no_pooler(tmp_path: Path, server: Server) -> None:
    """Some providers have one before their direct port too; each client's session is its own,
    options and all."""
    with (
        relay(tmp_path, server.dsn) as dsn,
        Server.open(load(tmp_path, {"url": dsn.url}, {})) as relayed,
    ):
        assert relayed.connection.info.backend_pid == OTHER_NUMBER
        assert relayed.facts.process != OTHER_NUMBER


def test_the_name_of_a_pooler_that_does_not_answer_is_not_taken_for_its_word(
    tmp_path: Path,
) -> None:
    with pytest.raises(ServerNotFound, match="no server answers"):
        Server.open(
            load(
                tmp_path, {"url": f"postgresql://me@/shop?host={tmp_path}/pgbouncer&port=6432"}, {}
            )
        )
