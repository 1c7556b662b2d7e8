"""What we lean on that is not ours to lean on: the private names of other libraries, in one list
each.

A list and the installed library: the test says which name has gone, and from which version. A list
and our code: what is used stands in it, and what stands in it is used. The second is a look at
names, not at types: where a name of ours is also one of the library's, `OURS_TOO` says so.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import dbclone
from dbclone.adapters import peewee, psycopg_pool, sqlalchemy
from dbclone.sandbox.psycopg3 import private_names
from dbclone.sandbox.wire import psycopg2

HOUSE = Path(dbclone.__file__).parent
PRIVATE = re.compile(r"_[a-z]\w*$")
#: What a library defines: by a look at its text, because to parse one takes seconds.
THEIRS = re.compile(r"(?:def |self\.|^    )(_[a-z]\w*)(?:\(|\[|:| = |, )", re.M)
LISTS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "psycopg": private_names.PRIVATE,
    "psycopg2": psycopg2.PRIVATE,
    "psycopg_pool": psycopg_pool.PRIVATE,
    "peewee": peewee.PRIVATE,
    "sqlalchemy": sqlalchemy.PRIVATE,
}
DISTRIBUTIONS = {"psycopg2": "psycopg2-binary", "psycopg_pool": "psycopg-pool"}
#: Where a library is used, and which other libraries come with it.
PLACES = {
    "psycopg": ("sandbox/psycopg3/*.py", "sandbox/session.py", "sandbox/session_lock.py"),
    "psycopg2": ("sandbox/wire/psycopg2.py",),
    "psycopg_pool": ("adapters/psycopg_pool.py", "sandbox/session.py"),
    "peewee": ("adapters/peewee.py", "adapters/hooks.py"),
    "sqlalchemy": ("adapters/sqlalchemy*.py", "adapters/hooks.py"),
}
PACKAGES = {
    "peewee": ("peewee", "playhouse"),
    "sqlalchemy": ("sqlalchemy", "flask_sqlalchemy"),
}
#: Names of methods and attributes of ours which the library happens to have as well.
OURS_TOO = {
    "psycopg": {"_queue", "_send", "_pgconn"},  # the last is the lock's, of the real connection
    "psycopg_pool": set(),
    "psycopg2": set(),
    "peewee": {"_close", "_database"},
    "sqlalchemy": {"_close", "_schemas"},
}


def resolved(path: str) -> Any:
    """Return a module, or what a module holds, by its dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(resolved(module), name)


def trees(paths: Iterable[Path]) -> Iterator[ast.AST]:
    for path in paths:
        yield from ast.walk(ast.parse(path.read_text()))


def defined(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names of functions, classes, and attributes of a class or of `self`."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if ast.unparse(node.value) == "self" else set()
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                named = line.targets if isinstance(line, ast.Assign) else []
                named = [line.target] if isinstance(line, ast.AnnAssign) else named
                found |= {name.id for name in named if isinstance(name, ast.Name)}
    return found


def used(library: str) -> set[str]:
    """Return the private names that our code uses where it deals with a library: as attributes, as
    methods that it overrides, and as strings."""
    found: set[str] = set()
    for node in trees(path for place in PLACES[library] for path in HOUSE.glob(place)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRIVATE":
            node.value = ast.Constant(None)  # the list itself uses nothing
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PRIVATE":
            node.value = None
    return {name for name in found if PRIVATE.match(name)}


def holds(owner: Any, name: str) -> bool:
    """Whether a module or class has a name, or sets it on its instances."""
    if hasattr(owner, name) or inspect.ismodule(owner):
        return hasattr(owner, name)
    sources = []
    for base in owner.__mro__:
        try:
            sources.append(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
    return name in defined(node for source in sources for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize(
    ("library", "owner"), [(library, owner) for library, found in LISTS.items() for owner in found]
)
def test_each_private_name_is_there(library: str, owner: str) -> None:
    version = importlib.metadata.version(DISTRIBUTIONS.get(library, library))
    thing = resolved(owner)
    if owner == "peewee.Model":
        thing = type("Own", (thing,), {})  # a metaclass gives each class its own
    gone = [name for name in LISTS[library][owner] if not holds(thing, name)]
    assert not gone, f"{library} {version} has no {', '.join(gone)} in {owner} any more"


@cache
def our_names() -> set[str]:
    return defined(trees(HOUSE.rglob("*.py")))


@pytest.mark.parametrize("library", LISTS)
def test_each_private_name_that_is_used_is_listed(library: str) -> None:
    theirs: set[str] = set()
    for package in PACKAGES.get(library, (library,)):
        origin = importlib.util.find_spec(package)
        assert origin is not None
        assert origin.origin is not None
        path = Path(origin.origin)
        files = path.parent.rglob("*.py") if path.stem == "__init__" else [path]
        theirs.update(name for file in files for name in THEIRS.findall(file.read_text()))
    ours = our_names()
    listed = {name for names in LISTS[library].values() for name in names}
    of_others = {n for found in LISTS.values() for names in found.values() for n in names} - ours
    found = used(library) - listed
    assert sorted((found & theirs) - OURS_TOO[library] - of_others) == []
    assert sorted(found - ours - of_others) == [], "neither ours nor listed"


@pytest.mark.parametrize("library", LISTS)
def test_each_private_name_that_is_listed_is_used(library: str) -> None:
    texts = [path.read_text() for place in PLACES[library] for path in HOUSE.glob(place)]
    words = {word for text in texts for word in re.findall(r"\w+", _without_list(text))}
    listed = {name for names in LISTS[library].values() for name in names}
    unused = listed - words - {"_encoding", "_isolation_level"}  # peewee's, put together there
    assert sorted(unused) == []


def _without_list(text: str) -> str:
    """Return a module's text without its own list."""
    return re.sub(r"^PRIVATE\b.*?^\}", "", text, flags=re.S | re.M)


def test_a_name_that_has_gone_is_named() -> None:
    assert holds(resolved("psycopg.Connection"), "_num_transactions")
    assert not holds(resolved("psycopg.Connection"), "_number_of_transactions")
    assert not holds(resolved("psycopg._preparing"), "PreparedManager")
