"""Wherever an error of ours is made it says in three parts what happened, why, and what to do."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import dbclone
from dbclone import errors
from dbclone.errors import Error

HOUSE = Path(dbclone.__file__).parent
CLASSES = {
    name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Error)
}


def made(tree: ast.AST) -> Iterator[tuple[ast.Call, list[ast.expr]]]:
    """Yield where an error of ours is made, by its class or by a setting, with the parts it is
    given."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in CLASSES:
            yield node, node.args
        elif name.endswith("settings.error") or name == "self.error":
            yield node, [*node.args[1:2], ast.Constant("where from"), *node.args[2:3]]


ROOMS = [
    path for path in sorted(HOUSE.rglob("*.py")) if "demo" not in path.relative_to(HOUSE).parts
]


def flaws(path: Path) -> Iterator[str]:
    """What is wrong with the errors that are made in a module. Of a part that is put together, what
    is written there is looked at."""
    tree = ast.parse(path.read_text())
    for node, parts in made(tree):
        if (
            len(parts) != 3
            or any(keyword.arg != "detail" for keyword in node.keywords)
            or any(isinstance(part, ast.Starred) for part in parts)
        ):
            yield f"line {node.lineno}: {ast.unparse(node)}: not three parts"
            continue
        for part in (parts[0], parts[2]):
            if isinstance(part, ast.Constant) and not (
                isinstance(part.value, str) and part.value.strip()
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}: a part is empty"
        end = parts[0].values[-1] if isinstance(parts[0], ast.JoinedStr) else parts[0]
        if isinstance(end, ast.Constant) and str(end.value).endswith((".", "\n")):
            yield f"line {node.lineno}: {ast.unparse(node)}: the message ends with a dot or a new line"
    for raised in ast.walk(tree):
        if isinstance(raised, ast.Raise) and isinstance(raised.exc, (ast.Name, ast.Attribute)):
            name = ast.unparse(raised.exc)
            if name.rpartition(".")[2] in CLASSES:
                yield f"line {raised.lineno}: the class {name} is raised without its parts"


def test_every_error_is_made_with_a_message_a_detail_and_a_hint() -> None:
    found = [f"{path.relative_to(HOUSE)}, {flaw}" for path in ROOMS for flaw in flaws(path)]
    assert found == []


def test_the_search_for_errors_finds_them() -> None:
    """Or else the test above would pass on anything."""
    found = [
        ast.unparse(node.func) for path in ROOMS for node, _ in made(ast.parse(path.read_text()))
    ]
    assert len(found) > 60
    assert {
        "BuildFailed",
        "SandboxLimit",
        "self.settings.error",
        "settings.error",
        "self.error",
    } <= set(found)
