"""The doors of other people's libraries: the few methods through which every use of a database
passes, and those that put another database behind a handle. Who watches them is told before it
happens, or when it has.

Light on purpose: it names libraries, and imports none of them and nothing of ours. The doors of a
library are fitted once in a process, and do nothing while nobody watches.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

__all__ = ["LIBRARIES", "Watcher", "door", "expected", "fit", "used", "watched", "watchers"]


class Watcher(Protocol):
    """Is told of `target` (a peewee Database, an Engine, a pool), which is about to be used (`use`)
    or has been put somewhere. What it raises, the application gets."""

    def __call__(self, target: Any, use: bool) -> None: ...


watchers: list[
    Watcher
] = []  # of this process, outermost first; as global as the classes that have the doors
used: list[bool] = [False]  # whether somebody has passed a door, or may have before it was there


def _tell(target: Any, use: bool) -> None:
    __tracebackhide__ = True
    for watcher in tuple(watchers):
        watcher(target, use)


def _before(owner: Any, name: str) -> None:
    """Tell the watchers before a method is called on what they know as target."""
    method = vars(owner)[name]

    def passed(target: Any) -> None:
        __tracebackhide__ = True
        used[0] = True
        if watchers:
            _tell(
                getattr(target, "_proxied", target), True
            )  # an OptionEngine has another engine's pool

    @functools.wraps(method)
    def door(self: Any, *arguments: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True
        passed(self)
        return method(self, *arguments, **keywords)

    @functools.wraps(method)
    async def awaited(self: Any, *arguments: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True
        passed(self)
        return await method(self, *arguments, **keywords)

    setattr(owner, name, awaited if inspect.iscoroutinefunction(method) else door)


def _after(owner: Any, name: str) -> None:
    """Tell the watchers when a method has been given a database, as its last argument."""
    method = vars(owner)[name]

    @functools.wraps(method)
    def door(self: Any, *arguments: Any) -> Any:
        __tracebackhide__ = True
        result = method(self, *arguments)
        target = arguments[-1] if arguments else None
        if watchers and hasattr(target, "connect"):  # also a Proxy that has a database
            _tell(getattr(target, "obj", target), False)
        return result

    setattr(owner, name, door)


def _peewee(library: Any) -> None:
    _before(library.Database, "connect")
    _after(library.Proxy, "__setattr__")
    _after(library.Metadata, "set_database")


def _peewee_async(library: Any) -> None:
    _before(library.AsyncDatabaseMixin, "aconnect")


def _sqlalchemy(library: Any) -> None:
    _before(library.Engine, "raw_connection")


def _psycopg_pool(library: Any) -> None:
    for owner in (library.ConnectionPool, library.AsyncConnectionPool):
        _before(owner, "open")
        _before(owner, "getconn")


def door(owner: type, name: str) -> None:
    """Make a door of the method `name` that `owner` defines, for an adapter of somebody else's
    library.

    To be called once, when the adapter's module is imported, for each method through which a target
    (the method's `self`) gets a connection. A coroutine function stays one.
    """
    used[0] = True  # somebody may have called the method before
    _before(owner, name)


LIBRARIES: dict[str, Callable[[Any], None]] = {
    "peewee": _peewee,
    "playhouse.pwasyncio": _peewee_async,
    "sqlalchemy": _sqlalchemy,
    "psycopg_pool": _psycopg_pool,
}
_FITTED: set[str] = set()


def fit(name: str) -> None:
    """Fit the doors of a library that has been imported, once."""
    library = sys.modules.get(name)
    if library is not None and name not in _FITTED:
        _FITTED.add(name)
        LIBRARIES[name](library)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` for the block of what passes the doors, after those that watch already."""
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.remove(watcher)


class _Finder:
    """Fits the doors of a library as soon as it has been imported, before whoever imports it can
    use it."""

    def __init__(self) -> None:
        self._busy = ""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in LIBRARIES or name == self._busy:
            return None
        self._busy = name
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._busy = ""
        loader: Any = spec.loader if spec is not None else None
        if hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def execute_and_fit(module: Any) -> None:
                execute(module)
                fit(name)

            loader.exec_module = execute_and_fit
        return spec


@contextlib.contextmanager
def expected() -> Iterator[None]:
    """Fit for the block the doors of each library when it is imported, and at once of those that
    have been."""
    used[0] = used[0] or any(name in sys.modules for name in LIBRARIES)
    for name in LIBRARIES:
        fit(name)
    finder: Any = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
