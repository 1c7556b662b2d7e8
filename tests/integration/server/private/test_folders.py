"""Files are like databases: nothing is removed, renamed, written or handed over that is not proved
to be ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbclone.errors import ServerError
from dbclone.server.private.account import cache_folder, server_account
from dbclone.server.private.binaries import Binaries
from dbclone.server.private.cluster import Cluster, sweep
from dbclone.server.private.embedded import Embedded
from dbclone.server.private.folders import MARK, foreign, open_private, private_folder, remove
from dbclone.server.server import Server
from dbclone.settings import load

from ....conftest import Project
from ....private import STRANGER, clear, only_root, own_server, public_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no private server there")
LONG_AGO = time.time() - 40 * 86400


def state(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return what there is below a folder: mode, owner, time of change and content or target of
    each thing."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        what = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(what.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (
            what.st_mode,
            what.st_uid,
            0 if path == folder else what.st_mtime_ns,
            content,
        )
    return found


def aged(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))


def users_files(folder: Path) -> None:
    """Fill a folder as a user might: a thesis with data, a PostgreSQL cluster of their own,
    leftovers with names like ours."""
    for name in (
        "thesis",
        "pgdata",
        "dbclone-18.1-0123abcd",
        "data.0123abcd.old",
        "initdb.0123abcd",
        "server",
        "locks",
    ):
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "data" / "PG_VERSION").write_text("18\n")
        (folder / name / "chapter.tex").write_text("ten years of measurements")
        (folder / name / "origin").write_text("/nonexistent")
        aged(folder / name / "data" / "PG_VERSION", folder / name / "data", folder / name)
    (folder / "binaries.json").write_text("mine")
    (folder / "log").write_text("mine")
    (folder / "keep").write_text("mine")


@pytest.fixture
def work() -> Iterator[Path]:
    """A user's folder with a project called proj and other things in it."""
    with public_folder() as folder:
        users_files(folder)
        (folder / "proj").mkdir()
        yield folder


@pytest.mark.parametrize(
    "data_dir", ["..", "../", "../thesis", "../pgdata", "WORK", "../thesis/../pgdata/data"]
)
def test_a_users_folder_named_as_data_dir_gets_one_folder_of_ours_and_is_left_as_it_was(
    data_dir: str, work: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    """The sweep of old servers removed each neighbour that held a folder called data."""
    before = state(work)
    with own_server(tmp_path, options) as plain:
        more = {"data_dir": data_dir.replace("WORK", str(work)), "binaries": plain.binaries}
        settings = load(
            work / "proj",
            {"cache_dir": plain.cache_dir, **{k: v for k, v in more.items() if v}},
            {},
        )
        for _ in range(2):
            with Server.open(settings) as server:
                assert server.embedded is not None
                home, folder = server.embedded.home, server.embedded.cluster.folder
                assert home == Path(
                    os.path.normpath(work / "proj" / data_dir.replace("WORK", str(work)))
                )
                assert folder.parent == home
                assert folder.name.startswith("dbclone-")
            sweep(home, settings.cache, server.embedded.cluster.account)
        shutil.rmtree(folder)
        after = state(work)
        assert {
            path: what for path, what in after.items() if path in before and path != str(home)
        } == {path: what for path, what in before.items() if path != str(home)}
        assert set(after) == set(before)
        clear(Embedded.locate(plain))


@pytest.mark.parametrize(
    "what", ["no mark", "a mark of another folder", "a copy", "moved here", "data of their own"]
)
def test_what_has_our_name_and_is_not_ours_is_passed_by_and_said(
    what: str, work: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    with own_server(tmp_path, options) as plain:
        given = {
            "cache_dir": plain.cache_dir,
            "data_dir": str(work),
            **({"binaries": plain.binaries} if plain.binaries else {}),
        }
        settings = load(work, given, {})
        located = Embedded.locate(settings)
        place, account = located.cluster.folder, located.cluster.account
        if what == "no mark":
            place.mkdir(mode=0o700)
        else:
            private_folder(
                place if what != "moved here" else work / "elsewhere", account, "cluster"
            )
        if what == "a mark of another folder":
            (place / MARK).write_text(
                json.dumps({**json.loads((place / MARK).read_text()), "inode": 1})
            )
        elif what == "a copy":
            place.rename(work / "saved")
            shutil.copytree(work / "saved", place)
            place.chmod(0o700)
        elif what == "moved here":
            (work / "elsewhere").rename(place)
        (place / "data").mkdir(mode=0o700)
        (place / "data" / "PG_VERSION").write_text("18\n")
        for path in (place, *place.rglob("*")):
            os.chown(path, account.uid, account.gid)
        aged(place / "data" / "PG_VERSION", place / "data")
        before = state(place)
        with Server.open(settings) as server:
            assert server.embedded is not None
            assert server.embedded.cluster.folder == place.with_name(f"{place.name}.2")
            assert any(note.startswith(f"{place} is left alone") for note in server.embedded.notes)
            again = Embedded.locate(settings)
            assert again.cluster.pid() == server.embedded.cluster.pid()
        sweep(work, settings.cache, account)
        assert state(place) == before
        with pytest.raises(ServerError, match="is left alone"):
            Cluster(place, place, located.cluster.binaries, account).remove()
        assert state(place) == before


@pytest.mark.parametrize("how", ["a link", "a file"])
def test_data_that_are_no_folder_are_not_followed(
    how: str, tmp_path: Path, options: dict[str, str]
) -> None:
    with own_server(tmp_path, options) as settings:
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        elsewhere = tmp_path / "elsewhere"
        users_files(elsewhere)
        data = located.cluster.data
        data.symlink_to(elsewhere) if how == "a link" else data.write_text("mine")
        before = state(elsewhere)
        with pytest.raises(ServerError, match="is left alone"):
            located.cluster.remove()
        with Server.open(settings) as server:
            assert server.embedded is not None
            assert server.embedded.cluster.folder != located.cluster.folder
        assert state(elsewhere) == before
        assert os.path.lexists(data)


def test_only_clusters_with_our_mark_that_are_a_month_old_are_swept(
    tmp_path: Path, options: dict[str, str]
) -> None:
    with own_server(tmp_path, options) as settings:
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        home, account, cache = located.home, located.cluster.account, cache_folder(settings)
        names = (
            "dbclone-old",
            "dbclone-new",
            "dbclone-locked",
            "dbclone-moved",
            "dbclone-copied",
            "dbclone-unmarked",
            "dbclone-used",
        )
        for name in names:
            lock = str(cache / "locks" / f"server-{name}.lock")
            private_folder(home / name, account, "cluster", cache=str(cache), lock=lock)
            private_folder(home / name / "data", account, "data")
            if name != "dbclone-new":
                aged(home / name / "data")
        (home / "dbclone-used" / "dump.sql").write_text("what a user has put there")
        (home / "dbclone-moved").rename(home / "thesis")
        shutil.copytree(home / "dbclone-copied", home / "copy")
        (home / "dbclone-unmarked" / MARK).unlink()
        shutil.rmtree(home / "dbclone-copied")
        (home / "copy").rename(home / "dbclone-copied")
        aged(home / "dbclone-copied" / "data")
        for path in (home / "dbclone-copied").rglob("*"):
            os.chown(path, account.uid, account.gid)
        os.chown(home / "dbclone-copied", account.uid, account.gid)
        from filelock import FileLock

        with FileLock(cache / "locks" / "server-dbclone-locked.lock"):
            sweep(home, cache, account)
        left = {path.name for path in home.iterdir()} - {MARK, located.cluster.folder.name}
        assert left == {
            "dbclone-new",
            "dbclone-locked",
            "thesis",
            "dbclone-copied",
            "dbclone-unmarked",
            "dbclone-used",
        }


def test_a_home_in_memory_is_swept_only_if_the_mark_in_it_is_its_own(
    tmp_path: Path, options: dict[str, str]
) -> None:
    """That of a cache folder that is gone; a copy of it, which a user made to keep, is not."""
    with (
        own_server(tmp_path / "here", options) as here,
        own_server(tmp_path / "gone", options) as gone,
    ):
        located, lost = Embedded.locate(here), Embedded.locate(gone)
        if not str(located.home).startswith("/dev/shm"):
            pytest.skip("the data are not in memory here")
        for server, settings in ((located, here), (lost, gone)):
            server._prepare_folders(settings)
        kept = lost.home.with_name(f"{lost.home.name}-kept")
        shutil.copytree(lost.home, kept)
        kept.chmod(0o700)
        for path in (kept, *kept.rglob("*")):
            os.chown(path, located.cluster.account.uid, located.cluster.account.gid)
        try:
            before = state(kept)
            shutil.rmtree(tmp_path / "gone" / "cache")
            sweep(located.home, cache_folder(here), located.cluster.account)
            assert not lost.home.exists()
            assert state(kept) == before
        finally:
            shutil.rmtree(kept)


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_users_folder_named_as_cache_dir_gets_one_folder_of_ours(mode: int, work: Path) -> None:
    """A repository may say cache_dir = ".." as well."""
    work.chmod(mode)
    before = state(work)
    settings = load(work / "proj", {"cache_dir": ".."}, {})
    assert cache_folder(settings) == cache_folder(settings) == work / "dbclone"
    shutil.rmtree(work / "dbclone")
    assert state(work) == before


def test_an_empty_cache_dir_is_used_as_it_is_also_later(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    place.mkdir(mode=0o700)
    settings = load(tmp_path, {"cache_dir": "cache"}, {})
    assert cache_folder(settings) == place
    (place / "locks").mkdir()
    assert cache_folder(settings) == place


def test_removing_leaves_links_targets_and_what_is_not_ours(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    users_files(outside)
    ours = private_folder(tmp_path / "ours", kind="cluster")
    (ours / "link").symlink_to(outside)
    (ours / "folder" / "deep").mkdir(parents=True)
    (ours / "folder" / "link").symlink_to(outside / "thesis")
    before = state(outside)
    with open_private(tmp_path / "ours") as folder:
        assert foreign(folder, ours, "cluster") == ""
        assert foreign(folder, ours, "home")
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        assert remove(parent, "ours", tmp_path / "another", "cluster") is False
        assert (ours / "folder" / "deep").exists()
        assert remove(parent, "ours", ours, "cluster") is True
        assert remove(parent, "outside", outside, "cluster") is False
    finally:
        os.close(parent)
    assert not ours.exists()
    assert state(outside) == before


@pytest.mark.skipif(sys.platform != "linux", reason="mounts")
@only_root
def test_what_is_mounted_in_a_folder_of_ours_is_not_emptied(tmp_path: Path) -> None:
    ours = private_folder(tmp_path / "ours", kind="cluster")
    (ours / "mounted").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(ours / "mounted")], capture_output=True
    ).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (ours / "mounted" / "thesis").write_text("ten years")
        parent = os.open(tmp_path, os.O_RDONLY)
        assert remove(parent, "ours", ours, "cluster") is False
        os.close(parent)
        assert (ours / "mounted" / "thesis").read_text() == "ten years"
        assert (ours / MARK).exists()
    finally:
        subprocess.run(["umount", str(ours / "mounted")], check=True)


#: A program of the server's account: whatever root has just made in this folder it exchanges for a link to root's own, and back.
THIEF = """
import os, sys
home, victim = sys.argv[1:]
print("ready", flush=True)
def swap(place, target):
    stash = place + ".stash"
    try:
        os.rename(place, stash)
        os.symlink(target, place)
        os.unlink(place)
        os.rename(stash, place)
    except OSError:
        pass
while os.path.exists(os.path.join(os.path.dirname(home), "go")):
    for folder, names, files in os.walk(home):
        for name in names:
            swap(os.path.join(folder, name), victim)
        for name in files:
            swap(os.path.join(folder, name), os.path.join(victim, "file"))
        for name in ("log", "keep", "dbclone.json", "pg_hba.conf", "pg_ident.conf"):
            try:
                os.symlink(os.path.join(victim, "file"), os.path.join(folder, name))
            except OSError:
                pass
"""
INITDB = '#!/bin/sh\nmkdir -p "$2/global" && echo 18 > "$2/PG_VERSION" && touch "$2/pg_hba.conf" "$2/pg_ident.conf"\n'


@only_root
def test_nothing_of_roots_is_given_away_however_quick_the_servers_account_is(
    tmp_path: Path,
) -> None:
    """S10: chown, chmod, rename, rmtree and open went by names in folders that this account owns,
    and was won in seconds."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    account = server_account()
    if python is None or subprocess.run([python, "-c", ""], **account.popen).returncode:
        pytest.skip("that account cannot run Python here")
    with public_folder() as public:
        victim = public / "victim"
        for name in ("data", "global", "sub"):
            (victim / name).mkdir(parents=True, mode=0o700)
            (victim / name / "file").write_text("root's own")
        for name in (
            "file",
            "log",
            "keep",
            "postmaster.pid",
            "pg_hba.conf",
            "pg_ident.conf",
            ".s.PGSQL.5432",
            MARK,
        ):
            (victim / name).write_text("root's own")
            (victim / name).chmod(0o600)
        (public / "initdb").write_text(INITDB)
        (public / "initdb").chmod(0o755)
        (public / "go").touch()
        home = private_folder(public / "home", account, "home")
        before = state(victim)
        program = Binaries(public, "18.1", "here")
        thief = subprocess.Popen(
            [python, "-c", THIEF, str(home), str(victim)],
            stdout=subprocess.PIPE,
            cwd="/",
            **account.popen,
        )
        try:
            assert thief.stdout is not None
            assert thief.stdout.readline() == b"ready\n"
            done = 0
            for number in range(150):
                folder = home / f"dbclone-{number % 5}"
                cluster = Cluster(folder, folder, program, account)
                for act in (
                    lambda cluster=cluster: private_folder(cluster.folder, account, "cluster"),
                    cluster.init,
                    lambda cluster=cluster: cluster.start(0.05),
                    cluster.remove,
                    cluster.pid,
                    lambda: sweep(home, public / "cache", account),
                ):
                    try:
                        act()
                        done += 1
                    except (ServerError, OSError):
                        pass  # it may keep us from working, in folders that are its own
            assert thief.poll() is None
            assert done
        finally:
            (public / "go").unlink()
            thief.communicate(timeout=30)
        after = state(victim)
        assert {path: what[:2] for path, what in after.items()} == {
            path: what[:2] for path, what in before.items()
        }
        assert after == before


@only_root
@pytest.mark.parametrize("prepared", ["/", "a process of root's"])
def test_no_process_but_the_accounts_is_taken_for_the_server(
    prepared: str, tmp_path: Path, options: dict[str, str]
) -> None:
    """`server stop` sends a signal to the process that a file of the account's names."""
    with (
        own_server(tmp_path, options) as settings,
        subprocess.Popen(["sleep", "600"], cwd="/") as sleeper,
    ):
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        cluster = located.cluster
        if prepared == "/":
            cluster.data.symlink_to("/")
        else:
            private_folder(cluster.data, cluster.account, "data")
            sleeper.kill()
            sleeper.wait()
        with subprocess.Popen(
            ["sleep", "600"], cwd="/" if prepared == "/" else cluster.data
        ) as mine:
            if prepared != "/":
                (cluster.data / "postmaster.pid").write_text(f"{mine.pid}\n")
            assert cluster.pid() is None
            assert cluster.stop(0.1) is True
            assert mine.poll() is None
            mine.kill()
        sleeper.kill()


@only_root
@pytest.mark.parametrize(
    "how", ["a stranger's folder", "a stranger's link", "unmarked", "not empty"]
)
def test_a_socket_folder_of_somebody_else_is_refused(
    how: str, tmp_path: Path, options: dict[str, str]
) -> None:
    """Where the path is too long for a socket it is in /tmp, where anybody may have been first."""
    more = {
        **options,
        "cache_dir": str(tmp_path / "cache"),
        "data_dir": str(tmp_path / ("d" * 120)),
    }
    located = Embedded.locate(load(tmp_path, more, {}))
    place = located.cluster.socket
    try:
        if how == "a stranger's link":
            place.symlink_to(tmp_path)
            os.chown(place, STRANGER, STRANGER, follow_symlinks=False)
        else:
            place.mkdir(mode=0o700)
            (place / "thesis").write_text("ten years")
            if how == "a stranger's folder":
                os.chown(place, 1, 1)
        before = state(place) if not place.is_symlink() else {}
        with pytest.raises(ServerError, match="is not private"):
            Server.open(load(tmp_path, more, {}))
        assert (state(place) if not place.is_symlink() else {}) == before
    finally:
        place.unlink() if place.is_symlink() else shutil.rmtree(place)


def test_settings_of_a_repository_that_lead_outside_are_named_before_they_are_used(
    project: Project, tmp_path: Path
) -> None:
    project.write(test_a="def test_a(): pass\n")
    project.configure(data_dir="..", cache_dir="inside")
    file = project.folder / "pyproject.toml"
    line = f"dbclone: data_dir = '..' leads outside the project: {project.folder.parent}, says {file} [tool.dbclone]"
    for name in ("DBCLONE_CACHE_DIR", "DBCLONE_BINARIES"):
        project.environ.pop(name, None)
    done = project.pytest("-q")
    assert line in done.stderr.splitlines(), done.stderr
    assert "cache_dir" not in done.stderr
    assert line in project.run("dbclone", "status").stderr.splitlines()
    project.configure(data_dir="inside/../..", binaries="/usr/bin", cache_dir="~/x")
    said = project.run("dbclone", "status").stderr
    assert all(f"dbclone: {key} = " in said for key in ("data_dir", "binaries", "cache_dir"))
    project.configure()
    assert "leads outside" not in project.run("dbclone", "status", DBCLONE_DATA_DIR="..").stderr
