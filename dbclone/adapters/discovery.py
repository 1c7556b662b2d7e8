"""Which adapter an object has: found by its type, imported when the first object of its library
turns up."""

from __future__ import annotations

import importlib
import sys
import types
from functools import lru_cache
from typing import Any

from ..errors import SettingsError
from .base import Adapter, Target

__all__ = ["GROUP", "OWN", "adapter_of", "prepare", "require_adapter", "target_of"]
GROUP = "dbclone.adapters"  # of entry points
#: What our own distribution declares in that group (a test holds the two equal). It is known here
#: because reading the metadata of all distributions takes milliseconds (4 to 6, and 75 where nobody
#: has imported what reads it), and finds nothing where a test has put another file system in place.
OWN = {
    "peewee": "dbclone.adapters.peewee:PeeweeAdapter",
    "playhouse": "dbclone.adapters.peewee:PeeweeAdapter",
    "psycopg_pool": "dbclone.adapters.psycopg_pool:PoolAdapter",
    "sqlalchemy": "dbclone.adapters.sqlalchemy:SQLAlchemyAdapter",
    "flask_sqlalchemy": "dbclone.adapters.sqlalchemy:SQLAlchemyAdapter",
    "sqlmodel": "dbclone.adapters.sqlalchemy:SQLAlchemyAdapter",
}


def adapter_of(thing: Any) -> Adapter | None:
    """Return the adapter for an object: a model, a handle, a collection or module of models; None
    if no library is recognised."""
    if isinstance(thing, (list, tuple, set)):
        return next((found for item in thing if (found := adapter_of(item)) is not None), None)
    if isinstance(thing, types.ModuleType):
        classes = [value for value in vars(thing).values() if isinstance(value, type)]
        return adapter_of(classes) or adapter_of(
            [v for v in vars(thing).values() if not isinstance(v, types.ModuleType)]
        )
    return _adapter_of_type(thing if isinstance(thing, type) else type(thing))


def prepare(thing: Any) -> None:
    """Import the adapter of a thing whose library none of ours knows, if there is one, so that its
    doors are there before the thing is used. Ours come when they are needed."""
    if not any(package in OWN for package in _packages(type(thing))):
        adapter_of(thing)


def require_adapter(handle: Any) -> Adapter:
    """Return the adapter of what has been found to have one."""
    adapter = adapter_of(handle)
    assert adapter is not None, f"{type(handle).__name__} has no adapter"
    return adapter


def target_of(thing: Any) -> Target:
    """Return a new Target for what an adapter has called one."""
    return require_adapter(thing).target(thing)


def _packages(kind: type) -> list[str]:
    """Return the top-level packages that a class and its bases come from."""
    return [base.__module__.partition(".")[0] for base in kind.__mro__]


@lru_cache(maxsize=64)
def _adapter_of_type(kind: type) -> Adapter | None:
    packages = _packages(kind)
    for package in packages:
        if package in OWN:
            return _made(OWN[package])
    strangers = [package for package in packages if package not in sys.stdlib_module_names]
    declared = _declared() if strangers else {}
    return next((_made(declared[package]) for package in strangers if package in declared), None)


@lru_cache(maxsize=1)
def _declared() -> dict[str, str]:
    """Return what the installed distributions declare, by the top-level package of a library."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP)}


@lru_cache(maxsize=16)
def _made(value: str) -> Adapter:
    """Return the one object of an adapter, by the value of its entry point."""
    module, _, name = value.partition("[")[0].partition(":")
    try:
        adapter: Adapter = getattr(importlib.import_module(module.strip()), name.strip())()
    except Exception as error:
        raise SettingsError(
            f"the adapter {value} cannot be loaded: {type(error).__name__}: {error}",
            f"It is declared in the entry-point group {GROUP}, and an object of its library is used"
            " as a schema or handle.",
            "Install a version of it that fits the library and this version of dbclone.",
        ) from error
    return adapter
