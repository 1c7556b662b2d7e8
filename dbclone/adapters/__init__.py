"""What dbclone knows of other people's libraries, one file each, none imported unless an object of that library turns up.

An adapter is a module with these functions:

    schema(settings, spec, thing)  the Schema that `thing` describes (models, metadata, a module of them)
    handle(thing)                  the database handle that those models use, or None
    bound(handle, url)             context manager: the application's handle leads to `url`
    lent(handle, connect)          context manager: the handle takes its connections from `connect(**options)`
    refusal(handle)                why the handle cannot be lent a sandbox (empty: it can)
    closed(handle)                 close the handle's connections, because their database is about to be replaced
    parameters(handle)             libpq parameters that the real connection of a sandbox has to have, as the application's do
    login(handle)                  (user, password) that an unbound handle connects with, as far as it says
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
import types
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ..migrations import Migrations, tool
from ..reset.sandbox import Session
from ..schema import Command, Function, Schema, SqlFiles, Steps
from ..settings import Settings

_BY_PACKAGE = {
    "peewee": "peewee",
    "playhouse": "peewee",
    "psycopg_pool": "psycopg",
    "sqlalchemy": "sqlalchemy",
    "flask_sqlalchemy": "sqlalchemy",
    "sqlmodel": "sqlalchemy",
}
_OBJECT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


class Adapter(Protocol):
    """The functions of an adapter module, as described above."""

    def schema(self, settings: Settings, spec: str, thing: Any) -> Schema: ...

    def handle(self, thing: Any) -> Any: ...

    def bound(self, handle: Any, url: str) -> contextlib.AbstractContextManager[None]: ...

    def lent(self, handle: Any, session: Session) -> contextlib.AbstractContextManager[None]: ...

    def refusal(self, handle: Any) -> str: ...

    def closed(self, handle: Any) -> None: ...

    def parameters(self, handle: Any) -> dict[str, str]: ...

    def login(self, handle: Any) -> tuple[str, str]: ...


def adapter_of(thing: Any) -> Adapter | None:
    """Return the adapter for an object: a model, a handle, a collection or module of models; None if no library is recognised."""
    if isinstance(thing, (list, tuple, set)):
        return next((found for item in thing if (found := adapter_of(item)) is not None), None)
    if isinstance(thing, types.ModuleType):
        classes = [value for value in vars(thing).values() if isinstance(value, type)]
        return adapter_of(classes) or adapter_of([v for v in vars(thing).values() if not isinstance(v, types.ModuleType)])
    return _adapter_of(thing if isinstance(thing, type) else type(thing))


@lru_cache(maxsize=64)
def _adapter_of(kind: type) -> Adapter | None:
    for base in kind.__mro__:
        name = _BY_PACKAGE.get(base.__module__.partition(".")[0])
        if name is not None:
            module: Any = importlib.import_module(f".{name}", __name__)
            return module  # type: ignore[no-any-return]
    return None


def _is_command(settings: Settings, spec: str) -> bool:
    """Return whether a text that ends in .sql is a command line, such as `psql -f schema.sql`, and no file's name with spaces."""
    words = spec.split()
    if len(words) < 2 or (settings.root / spec).exists():
        return False
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # where Command looks for it
    return any(word.startswith("-") for word in words[1:]) or shutil.which(words[0], path=path) is not None


def _part(settings: Settings, spec: str) -> tuple[Schema, Any]:
    """Return the schema that one string of the setting means, and the object behind it if there is one."""
    if (found := tool(spec)) is not None:
        return Migrations(settings, spec, found), None
    if (spec.endswith(".sql") and not _is_command(settings, spec)) or (re.search(r"[*?\[]", spec) and " " not in spec):
        return SqlFiles(settings, (spec,)), None
    is_module = bool(_DOTTED.match(spec)) and "." in spec
    if not (_OBJECT.match(spec) or is_module):
        return Command(settings, spec), None
    thing = settings.load_object("schema", spec)
    adapter = adapter_of(thing)
    if adapter is not None:
        return adapter.schema(settings, spec, thing), thing
    if callable(thing):
        return Function(settings, "schema", spec, thing), None
    raise settings.error(
        "schema",
        f"{spec} is {type(thing).__name__!r}, which is not a schema",
        "Name peewee models (a list, tuple, module or base class), SQLAlchemy metadata, a callable taking a URL, SQL files, or a"
        " command.",
    )


def load(settings: Settings, extra: Any = None) -> tuple[Schema, Any]:
    """Return the schema with its seed, and the application's handle (None if there is none to bind).

    Arguments: `extra`, a schema given as an object instead of a string (by a pytest hook or a caller). Raises SettingsError.
    """
    things: list[Any] = []
    parts: list[Schema] = []
    if extra is not None:
        adapter = adapter_of(extra)
        spec = getattr(extra, "__name__", type(extra).__name__)
        if adapter is not None:
            parts.append(adapter.schema(settings, spec, extra))
            things.append(extra)
        elif hasattr(extra, "manifest") and hasattr(extra, "build"):
            parts.append(extra)
        elif callable(extra):
            parts.append(Function(settings, "schema", spec, extra))
        else:
            raise settings.error(
                "schema", f"{type(extra).__name__!r} object given as a schema is none", "Give models, a callable or a string."
            )
    elif not settings.schema:
        raise settings.error(
            "schema",
            "nothing says what goes into the template",
            'Add schema = "package.models:MODELS" to [tool.dbclone] in pyproject.toml.',
        )
    for spec in settings.schema if extra is None else ():
        part, thing = _part(settings, spec)
        if isinstance(part, SqlFiles) and parts and isinstance(parts[-1], SqlFiles):
            parts[-1] = SqlFiles(settings, (*parts[-1].patterns, *part.patterns))
        else:
            parts.append(part)
        things += [thing] if thing is not None else []
    if settings.seed:
        function = settings.load_object("seed", settings.seed)
        if not callable(function):
            raise settings.error("seed", "it cannot be called", "Name a function that takes the database's URL.")
        parts.append(Function(settings, "seed", settings.seed, function))
    if settings.bind:
        handle = settings.load_object("bind", settings.bind)
        if adapter_of(handle) is None:
            raise settings.error(
                "bind",
                f"{type(handle).__name__!r} is not a database handle that dbclone knows",
                "Name a peewee database, a SQLAlchemy engine or a pool of psycopg_pool.",
            )
    else:
        handle = next((h for t in things for h in [adapter_of(t).handle(t)] if h is not None), None)  # type: ignore[union-attr]
    return (parts[0] if len(parts) == 1 else Steps(parts)), handle


@contextlib.contextmanager
def bound(handle: Any, url: str) -> Iterator[None]:
    """Point the application's handle at a database for the block; do nothing without one."""
    adapter = adapter_of(handle) if handle is not None else None
    with adapter.bound(handle, url) if adapter is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def lent(handle: Any, session: Session) -> Iterator[None]:
    """Give the application's handle connections into a sandbox for the block; do nothing without one."""
    adapter = adapter_of(handle) if handle is not None else None
    with adapter.lent(handle, session) if adapter is not None else contextlib.nullcontext():
        yield


def closed(handle: Any) -> None:
    """Close the connections of the application's handle, if there is one."""
    if handle is not None and (adapter := adapter_of(handle)) is not None:
        adapter.closed(handle)


def refusal(handle: Any) -> str:
    """Return why the handle cannot work in a sandbox, or an empty string."""
    adapter = adapter_of(handle) if handle is not None else None
    return adapter.refusal(handle) if adapter is not None else ""


def parameters(handle: Any) -> dict[str, str]:
    """Return how the application's connections begin: their `options`, such as a search_path, if they have any."""
    adapter = adapter_of(handle) if handle is not None else None
    return adapter.parameters(handle) if adapter is not None else {}


def login(handle: Any) -> tuple[str, str]:
    """Return (user, password) that the application's handle connects with by itself; empty where it does not say. Not to be asked
    while the handle is bound."""
    adapter = adapter_of(handle) if handle is not None else None
    return adapter.login(handle) if adapter is not None else ("", "")
