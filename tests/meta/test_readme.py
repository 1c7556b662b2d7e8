"""Everything that the README says to type works, and what it says of settings, commands and errors
is what the code has."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import dbclone
from dbclone.cli.main import _parser
from dbclone.server.server import Server
from dbclone.settings import describe

from ..conftest import Project

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture
def shop(project: Project) -> Project:
    """The README's example project: the demo's shop, configured as the README says."""
    shutil.copytree(Path(dbclone.__file__).parent / "demo" / "shop", project.folder / "shop")
    shutil.copy(
        Path(dbclone.__file__).parent / "demo" / "conftest.py", project.folder / "conftest.py"
    )
    toml = blocks("toml")[0]
    project.write(pyproject=f"{toml}name = {project.name!r}\n")
    return project


def test_it_begins_with_the_two_commands_that_ci_runs() -> None:
    first = blocks("sh")[0].splitlines()
    assert README.split("\n\n")[1].startswith("```sh")
    assert len(first) == 2
    assert all(line.startswith("python3 -m venv .venv && .venv/bin/pip install") for line in first)
    assert "dbclone demo" in first[0]
    assert "pytest" in first[1]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "command_of_readme 1" in ci
    assert "command_of_readme 2" in ci


def test_the_extras_that_it_installs_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {
        name
        for group in re.findall(r"(?:dbclone|\.)\[([\w,]+)\]", README)
        for name in group.split(",")
    }
    assert named
    assert named <= set(extras)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_its_test_snippets_pass(shop: Project, workers: str) -> None:
    snippets = [block for block in blocks("python") if "def test_" in block]
    shop.write(**{f"test_{number}": block for number, block in enumerate(snippets)})
    done = shop.pytest("-q", "-n", workers)
    expected = sum(block.count("def test_") for block in snippets)
    assert f"{expected} passed" in done.stdout, done.stdout + done.stderr


def test_its_script_without_pytest_runs(shop: Project) -> None:
    (script,) = [block for block in blocks("python") if "def test_" not in block]
    shop.write(script=script)
    done = shop.run("script")
    assert (done.returncode, done.stderr) == (0, "")


def test_its_ci_steps_run(shop: Project, server: Server) -> None:
    """The commands of both workflows, the second against a server given by URL as its service would
    be."""
    shop.write(
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
            done = shop.run(*words[2:], timeout=120, **environ)
            assert done.returncode == 0, done.stdout + done.stderr


def test_its_table_of_settings_is_the_codes() -> None:
    section = README.split("## Settings")[1].split("\n## ")[0]
    documented = {
        row[0]: row[1:]
        for row in (
            line.strip("|").split(" | ", 2)
            for line in section.splitlines()
            if line.startswith("| `")
        )
    }
    assert len(documented) == len(describe())
    for name, default, text, choices in describe():
        shown, meaning = documented[f" `{name}`"]
        expected = (
            str(default).lower()
            if isinstance(default, bool)
            else ", ".join(default)
            if isinstance(default, tuple)
            else str(default or "")
        )
        assert shown.strip() == expected
        assert meaning.strip().startswith(text)
        assert all(choice in meaning for choice in choices)


def test_it_documents_every_command_and_its_options() -> None:
    commands = next(
        action for action in _parser()._actions if hasattr(action, "choices") and action.choices
    )
    section = README.split("## Commands")[1].split("\n## ")[0]
    shared = {"--json", "--help", "-h", *(f"--{name.replace('_', '-')}" for name, *_ in describe())}
    assert commands.choices is not None
    for name, parser in dict(commands.choices).items():
        assert f"`{name}" in section
        own = {option for action in parser._actions for option in action.option_strings} - shared
        if name != "demo":
            assert all(option in section for option in own), own


def test_it_names_only_errors_that_exist() -> None:
    section = README.split("## Troubleshooting")[1].split("\n## ")[0]
    names = set(re.findall(r"`(\w+): ", section))
    assert names
    assert names <= set(dbclone.__all__)
