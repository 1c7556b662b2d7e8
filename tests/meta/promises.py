"""Which test keeps which promise of docs/PROMISES.md: a test names the ids that it tries in its
docstring. `python -m tests.meta.promises` prints the table."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]

#: The promises by their ids.
PROMISES = dict(
    re.findall(
        r"^\| ([A-FS][0-9]+) \| (.+) \|$",
        (TESTS.parent / "docs" / "PROMISES.md").read_text(encoding="utf-8"),
        re.M,
    )
)


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


def main() -> None:
    """Print the table as Markdown."""
    print("| promise | | tests |\n|---|---|---|")
    for name, promise in PROMISES.items():
        print(f"| {name} | {promise} | {', '.join(named().get(name, [])) or '**nothing**'} |")


if __name__ == "__main__":
    main()
