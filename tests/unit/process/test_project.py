"""Whose settings are read: those of the project's own folders, and no stranger's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbclone.errors import SettingsError
from dbclone.process import project
from dbclone.pytest_plugin.state import mentions_dbclone
from dbclone.settings import load

from ...private import STRANGER, only_root, shared_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files have other owners there")


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_folder() as found:
        yield found


def table(folder: Path, name: str = "ours", owner: int = -1, mode: int = 0o644) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pyproject.toml"
    path.write_text(f'[tool.dbclone]\nname = "{name}"\n')
    path.chmod(mode)
    os.chown(path, owner, owner)
    return path


def read(start: Path) -> str:
    """Return whose settings are read from a folder, and see that the plugin asks the same files."""
    found = load(start, {}, {})
    assert mentions_dbclone(start) == bool(found.sources)
    return found.name


@pytest.mark.parametrize(
    "marker", ["pytest.ini", "tox.ini", "setup.py", ".git/", "pyproject.toml", ""]
)
def test_a_file_above_the_root_is_not_read(marker: str, shared: Path) -> None:
    table(shared, "a stranger's")
    start = shared / "victim" / "tests"
    start.mkdir(parents=True)
    if marker.endswith("/"):
        (start.parent / marker).mkdir()
    elif marker:
        (start.parent / marker).touch()
    assert read(start) == ""


@pytest.mark.parametrize("repository", [".git/", ".git", ".hg/"])
def test_the_nearest_table_in_a_repository_is_read(repository: str, shared: Path) -> None:
    root = shared / "repository"
    start = root / "packages" / "x"
    table(root, "of the repository")
    start.mkdir(parents=True)
    (start / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read(start) == "", "without a repository the nearest pyproject.toml ends the walk"
    (root / repository).mkdir() if repository.endswith("/") else (root / repository).touch()
    assert read(start) == "of the repository"
    table(start, "of the package")
    assert read(start) == "of the package"
    assert read(root) == "of the repository"


@only_root
@pytest.mark.parametrize("which", ["file", "git", "folder"])
def test_a_strangers_file_in_a_shared_folder_is_not_read_whatever_is_beside_it(
    which: str, shared: Path
) -> None:
    """Also if the stranger makes the shared folder look like a repository, or our project stands in
    a folder of theirs."""
    above = shared / "theirs" if which == "folder" else shared
    table(above, "a stranger's", STRANGER)
    if which == "git":
        (shared / ".git").mkdir()
        os.chown(shared / ".git", STRANGER, STRANGER)
    if which == "folder":
        os.chown(above, STRANGER, STRANGER)
    start = above / "mine"
    start.mkdir()
    assert read(start) == ""


@only_root
@pytest.mark.parametrize(
    ("owner", "mode", "why"),
    [
        (STRANGER, 0o644, f"it belongs to user id {STRANGER}"),
        (0, 0o666, "everybody may write it"),
        (0, 0o664, "group 54321 may"),
    ],
)
def test_a_file_of_the_project_that_somebody_else_can_write_is_refused_by_name(
    owner: int, mode: int, why: str, shared: Path
) -> None:
    start = shared / "mine"
    path = table(start)
    os.chown(path, owner, 54321)
    path.chmod(mode)
    with pytest.raises(SettingsError) as caught:
        load(start, {}, {})
    assert caught.value.message.startswith(f"the settings in {path} are not used: {why}")
    assert f"chmod go-w {path}" in caught.value.hint
    (start / "below").mkdir()
    with pytest.raises(SettingsError):
        load(start / "below", {}, {})


@only_root
def test_a_project_of_another_user_is_theirs_whoever_runs_it(shared: Path) -> None:
    """Root in a container, and a checkout that its user has mounted: whoever runs its tests runs
    their conftest.py anyway."""
    path = table(shared / "checkout", "theirs", 1000)
    os.chown(path.parent, 1000, 1000)
    assert read(path.parent) == "theirs"
    path.chmod(0o664)
    assert read(path.parent) == "theirs", "umask 002: the group is their own"
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(SettingsError, match="it belongs to user id"):
        load(path.parent, {}, {})


def test_group_and_owner_of_ours_are_trusted(tmp_path: Path) -> None:
    path = table(tmp_path / "mine", mode=0o664)
    os.chown(path, -1, os.getegid())
    assert read(tmp_path / "mine") == "ours"
    assert project.problem(path, tmp_path / "mine") == ""
