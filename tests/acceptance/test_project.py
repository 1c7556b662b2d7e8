"""A run reads the settings of the project's own folders, and no stranger's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Project
from ..private import STRANGER, only_root, shared_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files have other owners there")


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_folder() as found:
        yield found


@only_root
def test_a_run_in_a_strangers_shared_folder_runs_no_command_of_theirs(
    shared: Path, project: Project, tmp_path: Path
) -> None:
    for name in ("git", "ini"):
        ran = tmp_path / f"ran-{name}"
        (shared / "pyproject.toml").write_text(
            f'[tool.dbclone]\nschema = "touch {ran}"\ninputs = []\nautouse = true\n'
        )
        os.chown(shared / "pyproject.toml", STRANGER, STRANGER)
        victim = shared / f"victim-{name}"
        victim.mkdir()
        (victim / ".git").mkdir() if name == "git" else (victim / "pytest.ini").write_text(
            "[pytest]\n"
        )
        (victim / "test_v.py").write_text("def test_x(): pass\n")
        project.folder = victim
        for key in [key for key in project.environ if key.startswith("DBCLONE_")]:
            del project.environ[key]
        done = project.pytest("-q")
        assert "1 passed" in done.stdout
        assert "dbclone" not in done.stdout
        assert not ran.exists()
