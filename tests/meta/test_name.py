"""The distribution is called pytest-dbclone: an index has another one under the shorter name, which
no text of ours may install."""

from __future__ import annotations

import ast
import itertools
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
NAME = "pytest-dbclone"
STRANGER = NAME.partition("-")[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# A tool that fetches distributions and its verb, then what the same command goes on with: not the
# next command, not prose.
_COMMAND = re.compile(
    r"\b(?:pip3?|pipx|uv|uvx|poetry|pdm|hatch|rye|conda|easy_install)\b(?: +[\w./-]+)*? +"
    r"(?:install|uninstall|add|remove|download|upgrade|sync|run --with)\b([^\n&|;`)]*)"
)
_EXTRAS = re.compile(r"(?<![\w.-])((?:[\w.-]+-)?" + STRANGER + r")\[([a-z][\w, -]*)\]")
_SELF = re.compile(r"(?<=['\" ])\.\[([a-z][\w, -]*)\]")
_METADATA = re.compile(
    r"\b(?:version|distribution|metadata|requires|files)\(\s*f?['\"]" + STRANGER + r"['\"]"
)


def flaws(text: str) -> list[str]:
    """Return what in a text would install or ask about another distribution than ours, or an extra
    that ours does not have."""
    found = [
        f"{command[0]!r} is about a stranger's distribution"
        for command in _COMMAND.finditer(text)
        if re.search(rf"(?<![\w./=:-]){STRANGER}(?![\w./-])", command[1])
    ]
    extras = set(PROJECT["optional-dependencies"])
    for name, named in [*_EXTRAS.findall(text), *((NAME, named) for named in _SELF.findall(text))]:
        missing = {extra.strip() for extra in named.split(",")} - extras
        found += [f"{name}[{named}]: a stranger's distribution"] if name != NAME else []
        found += (
            [f"{name}[{named}]: there is no extra {', '.join(sorted(missing))}"] if missing else []
        )
    return [
        *found,
        *(f"{asked!r} asks about a stranger's distribution" for asked in _METADATA.findall(text)),
    ]


def shipped() -> Iterator[Path]:
    """Every file of the checkout but what tools have made in it."""
    made = {"__pycache__", "build", "dist", "node_modules"}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in made
            and not name.endswith(".egg-info")
            and (not name.startswith(".") or name in (".ci", ".github"))
        ]
        yield from (Path(folder) / name for name in names if not name.startswith(".git"))


def texts(path: Path) -> Iterator[str]:
    """The text of a file as it stands and, for Python, each constant of it as one: a hint may go on
    in the next line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    yield text
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "{}"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_no_text_of_ours_installs_a_strangers_distribution_or_an_extra_that_does_not_exist() -> (
    None
):
    files = sorted(path for path in shipped() if path != Path(__file__))
    assert {"README.md", "pyproject.toml", ".ci/run", "dbclone/cli/main.py"} <= {
        path.relative_to(ROOT).as_posix() for path in files
    }
    found = [
        f"{path.relative_to(ROOT)}: {flaw}"
        for path in files
        for text in texts(path)
        for flaw in flaws(text)
    ]
    assert found == []


def test_such_a_text_is_noticed() -> None:
    """Or else the test above would pass on anything."""
    texts = [
        f"pip install {STRANGER}",
        f"Run: pip install -U '{STRANGER}'",
        f"python -m pip install -q pytest {STRANGER}==0.1",
        f".venv/bin/pip uninstall -y {STRANGER}",
        f"uv add --dev {STRANGER}",
        f"uv pip install {STRANGER}>=0.1",
        f"poetry add --group test {STRANGER}",
        f'install "{STRANGER}[server]"',
        f"{NAME}[everything]",
        "pip install -e '.[server,servers]'",
        f'version("{STRANGER}")',
        f"importlib.metadata.distribution('{STRANGER}')",
    ]
    assert [text for text in texts if not flaws(text)] == []


def test_what_is_ours_is_not() -> None:
    texts = [
        f"pip install '.[demo]' && python -m {STRANGER} demo",
        f'pip install "{NAME}[peewee,server]"',
        f"`pip install {NAME}`; the package is `{STRANGER}`",
        f"[tool.{STRANGER}]",
        f"pip install -e ./{STRANGER}",
    ]
    assert {text: flaws(text) for text in texts if flaws(text)} == {}


def test_extras_of_ours_that_need_others_ask_for_our_own_distribution() -> None:
    """What is installed here is what pyproject.toml says: the extras that are made of others lead
    to no other distribution."""
    asked = list(itertools.chain(requires(NAME) or [], *PROJECT["optional-dependencies"].values()))
    assert PROJECT["name"] == NAME
    assert any(requirement.startswith(f"{NAME}[") for requirement in asked)
    assert not [requirement for requirement in asked if re.match(rf"{STRANGER}\b", requirement)]
