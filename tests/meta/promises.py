"""Which test keeps which promise: the failures (A to F) and dangers (S) that dbclone must survive,
by their ids.

A test names the ids that it tries in its docstring. What cannot be tried here stands in
`untried.toml`, with the reason and with what was done instead. `python -m tests.meta.promises` prints
the whole table.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
TESTS = HERE.parent

#: How many there are of each kind: building, cloning, resets, rollback, processes, the embedded server; security.
COUNTS = {"A": 20, "B": 22, "C": 20, "D": 15, "E": 18, "F": 8, "S": 27}

IDS = [f"{kind}{number}" for kind, count in COUNTS.items() for number in range(1, count + 1)]


def tests() -> Iterator[tuple[str, str]]:
    """Every test function under tests/, as pytest names it, and its docstring."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
                "test_"
            ):
                yield (
                    f"{path.relative_to(TESTS).as_posix()}::{node.name}",
                    ast.get_docstring(node) or "",
                )


@functools.cache
def named() -> dict[str, list[str]]:
    """The tests that name each id; an id that none names is not in it."""
    found: dict[str, list[str]] = {}
    for test, docstring in tests():
        for name in dict.fromkeys(re.findall(r"\b[A-FS][0-9]{1,2}\b", docstring)):
            found.setdefault(name, []).append(test)
    return found


def untried() -> dict[str, dict[str, str]]:
    """What cannot be tried here: by id, `why`, and what was done `instead`."""
    table: dict[str, dict[str, str]] = tomllib.loads(
        (HERE / "untried.toml").read_text(encoding="utf-8")
    )
    return table


def main() -> None:
    """Print the table as Markdown."""
    tried, excused = named(), untried()
    print("| promise | tests |\n|---|---|")
    for name in IDS:
        tests = ", ".join(tried.get(name, []))
        excuse = (
            "not tried: {why} Instead: {instead}".format(**excused[name]) if name in excused else ""
        )
        print(f"| {name} | {tests or excuse or '**nothing**'} |")


if __name__ == "__main__":
    main()
