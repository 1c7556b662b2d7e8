"""What the private server meets on its way: killed users, killed initdbs, broken data, full memory,
odd paths."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from filelock import FileLock

from dbclone.errors import ServerError
from dbclone.server.private.account import private_folder
from dbclone.server.private.cluster import sweep
from dbclone.server.private.embedded import Embedded
from dbclone.server.private.folders import MARK
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ..private import Start, clear, others, own_server, public_folder, settings_of
from .stops import until


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]) -> Iterator[Settings]:
    """Settings of a server that is only these tests', made by the first of them."""
    with own_server(tmp_path_factory.mktemp("place"), options) as found:
        yield found


@pytest.fixture
def own(place: Settings) -> Settings:
    """Settings of that server, which is sound and does not run before the test."""
    located = Embedded.locate(place)
    located.cluster.stop()
    if not located.cluster.is_sound():
        Server.open(place).close()
    return place


@pytest.fixture
def start() -> Iterator[Start]:
    with others() as starter:
        yield starter


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def works(settings: Settings) -> str:
    """Open the server, use it and leave it; return its system identifier, by which a new cluster is
    told from the old one."""
    with Server.open(settings) as server:
        system = server.facts.system
    assert Embedded.locate(settings).cluster.pid() is None
    return system


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("PG_VERSION", b"\xff\xfe\n"),
        ("PG_VERSION", b""),
        ("global/pg_control", b""),
        ("postgresql.conf", None),
        ("pg_wal", None),
    ],
)
def test_data_that_something_has_damaged_are_replaced(
    own: Settings, name: str, content: bytes | None
) -> None:
    """A20. A cleaner of old files takes them one by one, also those that only a server that starts
    looks at."""
    before = works(own)
    path = Embedded.locate(own).cluster.data / name
    if content is not None:
        path.write_bytes(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert works(own) != before


def test_the_socket_lock_of_a_killed_server_does_not_stop_a_new_one_when_its_number_is_another_programs(
    own: Settings,
) -> None:
    """F3: after a container was restarted, small process ids come back, and they are this user's."""
    located = Embedded.locate(own)
    account = located.cluster.account
    with subprocess.Popen(["sleep", "600"], cwd="/", **account.popen) as living:
        lock = located.cluster.socket / ".s.PGSQL.5432.lock"
        lock.write_text(
            f"{living.pid}\n{located.cluster.data}\n0\n5432\n{located.cluster.socket}\n"
        )
        os.chown(lock, account.uid, account.gid)
        works(own)
        living.kill()


def gated(public: Path, settings: Settings) -> tuple[Settings, Path]:
    """Return settings whose initdb says in a folder that it was called, and waits there until it is
    let on; and that folder."""
    binaries = Embedded.locate(settings).cluster.binaries.folder
    gate, folder = public / "gate", public / "bin"
    gate.mkdir()
    gate.chmod(0o777)
    folder.mkdir()
    (folder / "postgres").symlink_to(binaries / "postgres")
    (folder / "initdb").write_text(
        f"#!/bin/sh\nmkfifo {gate}/$$.new && mv {gate}/$$.new {gate}/$$ && read line <"
        f' {gate}/$$ && {binaries}/initdb "$@"\n'
        f"mv {gate}/$$ {gate}/$$.done\n"
    )
    (folder / "initdb").chmod(0o755)
    return load(settings.root, {"cache_dir": settings.cache_dir, "binaries": str(folder)}, {}), gate


def waiting(gate: Path) -> list[Path]:
    return [path for path in gate.iterdir() if not path.suffix]


def test_an_initdb_that_outlives_its_killed_parent_harms_nobody(
    tmp_path: Path, options: dict[str, str], public: Path, start: Start
) -> None:
    """A SIGKILL of the user frees the file lock, while its initdb goes on: now two of them are at
    work in one folder."""
    with own_server(tmp_path, options) as plain:
        slow, gate = gated(public, plain)
        home = str(Embedded.locate(slow).home)
        try:
            killed = start(settings_of(slow))
            killed.tell("open")
            until(lambda: len(waiting(gate)) == 1)
            killed.kill()
            (first,) = waiting(gate)
            user = start(settings_of(slow))
            user.tell("open")
            until(lambda: len(waiting(gate)) == 2)
            (second,) = set(waiting(gate)) - {first}
            for path in (first, second):
                path.write_text("\n")
                until(path.with_name(f"{path.name}.done").exists)
            found = user.answer()
            assert (found["home"], found["started"]) == (home, True)  # its own did not fail
            assert user.ask("close") is True
            works(slow)
        finally:
            clear(Embedded.locate(slow))


def test_an_initdb_that_fails_is_quoted_and_leaves_nothing(
    tmp_path: Path, public: Path, options: dict[str, str]
) -> None:
    with own_server(tmp_path, options) as plain:
        slow, _ = gated(public, plain)
        initdb = Path(slow.binaries) / "initdb"
        initdb.write_text("#!/bin/sh\necho the moon is full >&2\nmkdir -p $2/base\nexit 1\n")
        try:
            with pytest.raises(ServerError, match="initdb failed") as caught:
                Server.open(slow)
            assert "the moon is full" in caught.value.detail
            assert slow.binaries in caught.value.hint
            located = Embedded.locate(slow)
            assert not [
                path for home in (located.home, located.disk) for path in home.glob("*/data*")
            ]
        finally:
            clear(Embedded.locate(slow))
            shutil.rmtree(Path("/dev/shm") / Embedded.locate(slow).disk.name, ignore_errors=True)


UNSHARE = (
    "unshare",
    "-m",
    "--propagation",
    "private",
    "sh",
    "-c",
    'mount -t tmpfs -o size={} tmpfs /dev/shm && exec "$@"',
    "sh",
)
SWELL = """
import dbclone.server.private.embedded as room
room.free_bytes = lambda path: 2**40 if str(path) == "/dev/shm" else 0
"""
FILL = """
import dbclone.server.private.cluster as cluster
def fill(self, *rest, **named):
    with open("/dev/shm/filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(65536)) == 65536: pass
            while filler.write(b"0"): pass
        except OSError: filler.truncate(filler.tell() - {1})
    return then(self, *rest, **named)
then, cluster.Cluster.{0} = cluster.Cluster.{0}, fill
"""


def in_memory_of(size: str) -> tuple[str, ...]:
    """Return the command that runs another with a /dev/shm of its own; skip the test where that is
    not allowed."""
    command = tuple(word.replace("{}", size) for word in UNSHARE)
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("only Linux with unshare can give a process a small /dev/shm")
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("only root may mount a small /dev/shm for one process")
    return command


def test_without_room_in_memory_the_data_are_on_disk(
    tmp_path: Path, options: dict[str, str], start: Start
) -> None:
    """F7: a container's /dev/shm has 64 MB, where parallel queries do not fit either."""
    command = in_memory_of("64m")
    with own_server(tmp_path, options) as settings:
        user = start(settings_of(settings), before=command)
        found = user.ask("open")
        assert found["home"] == found["disk"]
        assert user.ask("eval __import__('os').listdir('/dev/shm')") == []
        assert user.ask("eval server.fetch('SHOW dynamic_shared_memory_type')") == [["mmap"]]
        costs = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0"
        for statement in (
            costs,
            "CREATE TABLE public.big AS SELECT generate_series(1, 200000) AS n",
            "ANALYZE public.big",
        ):
            user.ask(f"eval server.connection.execute({statement!r}) and None")
        join = "SELECT count(*) FROM public.big a JOIN public.big b USING (n)"
        assert "Gather" in str(user.ask(f"eval server.fetch({'EXPLAIN ' + join!r})"))
        assert user.ask(f"eval server.fetch({join!r})") == [[200000]]
        assert user.ask("close") is True


@pytest.mark.parametrize("moment", ["init", "start"])
def test_memory_that_fills_up_after_we_looked_sends_the_data_to_disk_and_later_users_find_them(
    tmp_path: Path, options: dict[str, str], start: Start, moment: str
) -> None:
    """F7."""
    command = in_memory_of("600m")
    with own_server(tmp_path, options) as settings:
        # Before 16, initdb itself needs a little of /dev/shm wherever the data are.
        spared = 0 if Embedded.locate(settings).cluster.binaries.major >= 16 else 4 * 2**20
        if spared and moment == "start":
            pytest.skip("what initdb needs before 16 is enough to start")
        user = start(settings_of(settings), setup=FILL.format(moment, spared), before=command)
        first = user.ask("open")
        assert "error" not in first, first["text"]
        assert first["home"] == first["disk"]
        assert user.ask("eval __import__('os').remove('/dev/shm/filler')") is None
        assert user.ask("close") is True
        later = start(settings_of(settings))  # where memory has room again
        second = later.ask("open")
        assert (second["home"], second["system"]) == (first["home"], first["system"])
        assert later.ask("close") is True


def test_many_who_start_together_and_find_memory_full_share_one_server(
    tmp_path: Path, options: dict[str, str], start: Start
) -> None:
    """Each of them chose memory before the first of them went to disk."""
    command = in_memory_of("8m")
    with own_server(tmp_path, options) as settings:
        users = [start(settings_of(settings), setup=SWELL, before=command) for _ in range(6)]
        for user in users:
            user.ask("ready")
        for user in users:
            user.tell("open")
        found = [user.answer() for user in users]
        assert {(each["pid"], each["system"]) for each in found} == {
            (found[0]["pid"], found[0]["system"])
        }
        assert [each["started"] for each in found].count(True) == 1
        assert [user.ask("close") for user in users] == [False] * 5 + [True]


def test_its_url_leads_there_whatever_the_path(
    public: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    """F1: a comma separates hosts for libpq and folders for the server, and not every file name is
    text."""
    name = "one, two\udce9\n"
    data = private_folder(
        public / "data", Embedded.locate(load(tmp_path, options, {})).cluster.account
    )
    with own_server(tmp_path, options, data_dir=str(data / name)) as settings:
        with (
            Server.open(settings) as server,
            psycopg.connect(server.database("template1").url) as connection,
        ):
            assert connection.info.dbname == "template1"
            ours = [path for path in data.iterdir() if path.name not in (MARK, "papers")]
            assert ours == [data / name]  # beside a user's papers


def test_the_socket_of_a_long_path_is_where_the_next_user_looks_whatever_its_temporary_folder(
    public: Path, tmp_path: Path, options: dict[str, str], start: Start
) -> None:
    data = private_folder(
        public / "data", Embedded.locate(load(tmp_path, options, {})).cluster.account
    )
    with (
        own_server(tmp_path, options, data_dir=str(data / ("long" * 50))) as settings,
        Server.open(settings),
    ):
        environ: dict[str, Any] = {**os.environ, "TMPDIR": str(private_folder(tmp_path / "tmp"))}
        user = start(settings_of(settings), env=environ)
        assert user.ask("open")["started"] is False
        assert user.ask("close") is False


def test_homes_in_memory_of_cache_folders_that_are_gone_are_swept_away(
    tmp_path: Path, options: dict[str, str]
) -> None:
    with (
        own_server(tmp_path / "gone", options) as gone,
        own_server(tmp_path / "here", options) as here,
    ):
        homes = []
        for settings in (gone, here):
            located = Embedded.locate(settings)
            if not str(located.home).startswith("/dev/shm"):
                pytest.skip("the data are not in memory here")
            located._prepare_folders(settings)
            private_folder(located.cluster.data, located.cluster.account, "data")
            homes.append(located.home)
        shutil.rmtree(tmp_path / "gone" / "cache")
        sweep(homes[1], Path(here.cache_dir), located.cluster.account)
        assert not homes[0].exists()
        assert homes[1].exists()


def test_who_waits_for_a_slow_start_waits_as_long_as_something_happens_there(
    tmp_path: Path, options: dict[str, str], public: Path, start: Start
) -> None:
    """Three times `connect_timeout` without any progress is too long; an initdb that writes now and
    then is not, however slow."""
    with own_server(tmp_path, options) as plain:
        slow, gate = gated(public, plain)
        hasty = {**settings_of(slow), "connect_timeout": "0.5"}
        try:
            holder, waiter = start(settings_of(slow)), start(hasty)
            holder.tell("open")
            until(lambda: len(waiting(gate)) == 1)
            (initdb,) = waiting(gate)
            waiter.tell("open")
            folder = Embedded.locate(slow).cluster.folder
            for number in range(8):
                time.sleep(0.4)
                (folder / "log").write_text("x" * number)
            initdb.write_text("\n")
            found, other = holder.answer(), waiter.answer()
            assert "error" not in other, other["text"]
            assert (found["system"], found["started"], other["started"]) == (
                other["system"],
                True,
                False,
            )
            assert waiter.ask("close") is False
            assert holder.ask("close") is True
        finally:
            clear(Embedded.locate(slow))


def test_many_cold_starts_join_without_waiting_for_each_other(own: Settings, start: Start) -> None:
    """Whoever finds the lock taken joins as soon as the server answers, also while somebody keeps
    the lock."""
    with Server.open(own) as server:
        assert server.embedded is not None
        hidden = server.embedded.cluster.socket / ".s.PGSQL.5432"
        hidden.rename(hidden.with_name("hidden"))
        users = [start(settings_of(own)) for _ in range(4)]
        with FileLock(server.embedded.lock_path):
            for user in users:
                assert user.ask("ready") == "ready"
                user.tell("open")
            time.sleep(0.5)
            hidden.with_name("hidden").rename(hidden)
            assert [user.answer()["started"] for user in users] == [False] * 4
        assert [user.ask("close") for user in users] == [False] * 4
