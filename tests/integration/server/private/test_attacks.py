"""Another user of the machine against the private server, and against who starts it."""

from __future__ import annotations

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

from dbclone import runner
from dbclone.errors import ServerError
from dbclone.server.private.account import private_folder
from dbclone.server.private.cluster import sweep
from dbclone.server.private.embedded import Embedded
from dbclone.server.private.folders import MARK
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ....private import STRANGER, only_root, own_server, public_folder

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
    """S12, S13: neither `nobody` nor `daemon` may list, enter, read, write or replace anything, nor
    connect."""
    with public_folder() as public:
        more: dict[str, Any] = {
            "data_dir": str(public / ("data" if socket == "in the folder" else "d" * 120))
        }
        before = os.umask(0)
        try:
            with own_server(tmp_path, options, **more) as settings, Server.open(settings) as server:
                assert server.embedded is not None
                found = server.embedded
                assert (found.cluster.socket == found.cluster.folder) == (socket == "in the folder")
                places = list(
                    map(
                        str,
                        dict.fromkeys(
                            (found.home, found.cluster.folder, found.cluster.socket, settings.cache)
                        ),
                    )
                )
                for uid in {STRANGER, 1} - {found.cluster.account.uid}:
                    program = [sys.executable, "-c", INTRUDER, str(uid), str(uid), *places]
                    done = subprocess.run(program, capture_output=True, text=True)
                    assert done.returncode == 0, done.stderr
                    said = json.loads(done.stdout)
                    assert len(said) == len(places) * 7
                    # What is too long for an address of a socket cannot be tried.
                    assert {
                        error
                        for act, error in said.items()
                        if not act.startswith(f"connect {public}/ddd")
                    } == {"PermissionError"}
                assert server.fetch(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                ) == [(1,)]
                open_to_others = [
                    path
                    for place in places
                    for path in [Path(place), *Path(place).rglob("*")]
                    if others_may(path)
                ]
                assert open_to_others == []
        finally:
            os.umask(before)


def others_may(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False  # the server has just removed it
    return not stat.S_ISLNK(found.st_mode) and bool(stat.S_IMODE(found.st_mode) & 0o077)


@pytest.mark.parametrize("which", ["cache", "locks", "home", "folder", "socket"])
@pytest.mark.parametrize(
    "how",
    ["a link", "open to all", "a file", "a pipe", pytest.param("a stranger's", marks=only_root)],
)
def test_nobody_is_led_to_a_place_that_somebody_prepared(
    which: str, how: str, tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S14: not by the URL that the application reads when it is imported either, nor by `status` or
    `server stop`."""
    more = {"data_dir": str(tmp_path / ("d" * (120 if which == "socket" else 5)))}
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
            lambda: runner.predicted_environment(settings, "gw0", "run"),
            lambda: Embedded.locate(settings),
        ):
            with pytest.raises(ServerError, match=r"is not private|cannot make the folder"):
                act()
        assert not elsewhere.exists() or [path.name for path in elsewhere.iterdir()] == [MARK]
    finally:
        for path in (place, located.home):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
                missing_ok=True
            )


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm here")
@pytest.mark.parametrize("how", ["a pipe", "a link", pytest.param("a stranger's", marks=only_root)])
def test_a_folder_in_memory_that_looks_like_ours_does_not_stop_us_and_is_not_believed(
    how: str, own: Settings, tmp_path: Path
) -> None:
    """S14: anybody may make one there, and who starts a server looks into all of them."""
    located = Embedded.locate(own)
    home = private_folder(located.home, located.cluster.account, "home", cache=str(own.cache))
    false = (
        Path("/dev/shm")
        / f"dbclone-{os.getuid()}-{located.cluster.account.uid}-{os.urandom(4).hex()}"
    )
    target = tmp_path / "target"
    (target / "clusters" / "data").mkdir(parents=True)
    try:
        if how == "a link":
            facts = json.loads((home / MARK).read_text())
            forged = {
                **facts,
                "path": str(false),
                "inode": target.stat().st_ino,
                "cache": "/nonexistent",
            }
            (target / MARK).write_text(json.dumps(forged))
            os.chown(target, home.stat().st_uid, -1)
            false.symlink_to(target)
        else:
            false.mkdir()
            if how == "a stranger's":
                forged = {
                    "made by": "dbclone",
                    "kind": "home",
                    "uid": os.getuid(),
                    "path": str(false),
                    "cache": "/nonexistent",
                }
                (false / MARK).write_text(json.dumps({**forged, "inode": false.stat().st_ino}))
                false.chmod(0o700)
                os.chown(false, STRANGER if located.cluster.account.uid != STRANGER else 1, -1)
            else:
                os.chown(false, home.stat().st_uid, -1)
                false.chmod(0o700)
                os.mkfifo(false / MARK)
        before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for a pipe"))
        signal.alarm(20)
        try:
            sweep(home, own.cache, located.cluster.account)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert false.exists()
        assert (target / "clusters" / "data").exists()
    finally:
        false.unlink() if false.is_symlink() else shutil.rmtree(false)
