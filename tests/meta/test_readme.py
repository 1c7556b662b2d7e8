"""What the README says of settings, commands and errors is what the code has; that what it says to
type works is tried in acceptance/test_readme.py."""

from __future__ import annotations

import re
import sys

import dbclone
from dbclone.cli.main import _parser
from dbclone.settings import describe

from ..readme import README, ROOT, blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
