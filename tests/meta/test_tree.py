"""The tests' own tree: folders are those of the packages, and a fixture's name has one meaning."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dbclone

TESTS = Path(__file__).parents[1]
HOUSE = Path(dbclone.__file__).parent


@pytest.mark.parametrize("kind", ["unit", "integration"])
def test_folders_mirror_the_packages(kind: str) -> None:
    """What is tested besides the library stands beside its packages: the benchmarks; and of an
    adapter that is one module there may be so many tests that they have a folder."""
    beside = {"benchmarks", "adapters/alchemy"}
    folders = {
        path.parent.relative_to(TESTS / kind).as_posix()
        for path in (TESTS / kind).rglob("test_*.py")
    }
    assert [name for name in folders - beside if not (HOUSE / name).is_dir()] == []


def test_what_most_tests_start_from_is_defined_once() -> None:
    found: dict[str, list[str]] = {"clone": [], "fresh_clone": [], "shop": [], "session": []}
    for path in TESTS.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.FunctionDef)
                and node.name in found
                and any("fixture" in ast.unparse(each) for each in node.decorator_list)
            ):
                found[node.name].append(path.relative_to(TESTS).as_posix())
    assert found == {
        "clone": ["conftest.py"],
        "fresh_clone": ["conftest.py"],
        "shop": ["conftest.py"],
        "session": ["integration/sandbox/conftest.py"],
    }
