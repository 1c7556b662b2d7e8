"""Everything that the README says to type works."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import dbclone
from dbclone.server.server import Server

from ..conftest import Project
from ..readme import blocks

pytestmark = pytest.mark.slow


@pytest.fixture
def shop_project(project: Project) -> Project:
    """The README's example project: the demo's shop, configured as the README says."""
    shutil.copytree(Path(dbclone.__file__).parent / "demo" / "shop", project.folder / "shop")
    shutil.copy(
        Path(dbclone.__file__).parent / "demo" / "conftest.py", project.folder / "conftest.py"
    )
    toml = blocks("toml")[0]
    project.write(pyproject=f"{toml}name = {project.name!r}\n")
    return project


@pytest.mark.parametrize("workers", ["0", "2"])
def test_its_test_snippets_pass(shop_project: Project, workers: str) -> None:
    snippets = [block for block in blocks("python") if "def test_" in block]
    shop_project.write(**{f"test_{number}": block for number, block in enumerate(snippets)})
    done = shop_project.pytest("-q", "-n", workers)
    expected = sum(block.count("def test_") for block in snippets)
    assert f"{expected} passed" in done.stdout, done.stdout + done.stderr


def test_its_script_without_pytest_runs(shop_project: Project) -> None:
    (script,) = [block for block in blocks("python") if "def test_" not in block]
    shop_project.write(script=script)
    done = shop_project.run("script")
    assert (done.returncode, done.stderr) == (0, "")


def test_its_ci_steps_run(shop_project: Project, server: Server) -> None:
    """The commands of both workflows, the second against a server given by URL as its service would
    be."""
    shop_project.write(
        test_it="from shop.models import User\ndef test_it(dbclone):\n    assert"
        " User.select().count() == 0\n"
    )
    plain, service = (re.findall(r"- run: (.*)", block) for block in blocks("yaml"))
    assert "DBCLONE_URL:" in blocks("yaml")[1]
    for steps, environ in ((plain, {}), (service, {"DBCLONE_URL": server.dsn.url})):
        for step in steps:
            words = shlex.split(step)
            if words[0] == "pip":  # that the extras exist is another test; installing is CI's
                continue
            assert words[:2] == ["python", "-m"]
            done = shop_project.run(*words[2:], timeout=120, **environ)
            assert done.returncode == 0, done.stdout + done.stderr
