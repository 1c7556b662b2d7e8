"""What dbclone knows of other people's libraries, one file each, none imported unless an object of
that library turns up.

A *handle* is what the settings name; behind it stand *targets*, which connect, and which
`following` finds. An adapter is a module with these functions:

    schema(settings, spec, thing)  the Schema that `thing` describes (models, metadata, a module)
    handle(thing)                  the database handle that those models use, or None
    models(thing)                  those models that name the database which they use
    targets(handle, models)        the targets behind a handle, and behind models, at this moment
    place(target)                  host, port and name of the database that a target leads to
    filled(handle, url)            context manager: a handle that leads nowhere leads to `url`
    notified(handle, take)         context manager: `take` is called with targets that are made
    point(target, url, before)     lead a target to `url`; point_back, strayed get what it returns
    strayed(target, before)        whether the application has led it elsewhere since
    lend(target, session, before)  have it connect into a sandbox; likewise take_back, escaped
    refusal(target)                why a target cannot be lent a sandbox, or empty
    holds(target)                  whether the application has one of its connections
    aside(target), back(…)         put such a connection aside for a while
    closed(target)                 close its connections: their database will be replaced
    parameters(target)             libpq parameters of the application's connections
    login(target)                  (user, password) that a target of the project connects with
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
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ..errors import SettingsError
from ..sandbox.session import Session
from ..schema.sources import Command, Function, Schema, SqlFiles, Steps
from ..server.dsn import parse
from ..settings import Settings
from .following import Handle, Lead, imported, is_led, leads, look, present
from .migrations.source import Migrations, tool

__all__ = [
    "Adapter", "adapter_of", "aside", "belongs", "bound", "closed", "is_led", "lent", "load",
    "look", "named", "parameters", "present", "refusal", "targets",
]  # fmt: skip
_BY_PACKAGE = {
    "peewee": "peewee",
    "playhouse": "peewee",
    "psycopg_pool": "psycopg_pool",
    "sqlalchemy": "sqlalchemy",
    "flask_sqlalchemy": "sqlalchemy",
    "sqlmodel": "sqlalchemy",
}
Place = tuple[str, str, str]  # host, port and name of a database
_OBJECT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


class Adapter(Protocol):
    """The functions of an adapter module, as described above."""

    def schema(self, settings: Settings, spec: str, thing: Any) -> Schema: ...

    def handle(self, thing: Any) -> Any: ...

    def models(self, thing: Any) -> Sequence[Any]: ...

    def targets(self, handle: Any, models: Sequence[Any]) -> list[Any]: ...

    def place(self, target: Any) -> Place | None: ...

    def filled(self, handle: Any, url: str) -> contextlib.AbstractContextManager[None]: ...

    def notified(
        self, handle: Any, take: Callable[[Any], Any]
    ) -> contextlib.AbstractContextManager[None]: ...

    def point(self, target: Any, url: str, before: Any) -> Any: ...

    def point_back(self, target: Any, before: Any) -> None: ...

    def strayed(self, target: Any, before: Any) -> bool: ...

    def lend(self, target: Any, session: Session, before: Any) -> Any: ...

    def take_back(self, target: Any, before: Any) -> None: ...

    def escaped(self, target: Any, before: Any) -> bool: ...

    def refusal(self, target: Any) -> str: ...

    def holds(self, target: Any) -> bool: ...

    def aside(self, target: Any) -> Any: ...

    def back(self, target: Any, before: Any) -> None: ...

    def closed(self, target: Any) -> None: ...

    def parameters(self, target: Any) -> dict[str, str]: ...

    def login(self, target: Any) -> tuple[str, str]: ...


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
    return _adapter_of(thing if isinstance(thing, type) else type(thing))


@lru_cache(maxsize=64)
def _adapter_of(kind: type) -> Adapter | None:
    for base in kind.__mro__:
        name = _BY_PACKAGE.get(base.__module__.partition(".")[0])
        if name is not None:
            module: Any = importlib.import_module(f".{name}", __package__)
            return module  # type: ignore[no-any-return]
    return None


def _is_command(settings: Settings, spec: str) -> bool:
    """Return whether a text that ends in .sql is a command line, such as `psql -f schema.sql`, and
    no file's name with spaces."""
    words = spec.split()
    if len(words) < 2 or (settings.root / spec).exists():
        return False
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )  # where Command looks for it
    return (
        any(word.startswith("-") for word in words[1:])
        or shutil.which(words[0], path=path) is not None
    )


def _part(settings: Settings, spec: str) -> tuple[Schema, Any]:
    """Return the schema that one string of the setting means, and the object behind it if there is
    one."""
    if (found := tool(spec)) is not None:
        return Migrations(settings, spec, found), None
    if (spec.endswith(".sql") and not _is_command(settings, spec)) or (
        re.search(r"[*?\[]", spec) and " " not in spec
    ):
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
        "Name peewee models (a list, tuple, module or base class), SQLAlchemy metadata, a"
        " callable taking a URL, SQL files, or a"
        " command.",
    )


def load(settings: Settings, extra: Any = None) -> tuple[Schema, Any]:
    """Return the schema with its seed, and the application's handle (None if there is none to
    bind).

    Arguments: `extra`, a schema given as an object instead of a string (by a pytest hook or a
    caller). Raises SettingsError.
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
                "schema",
                f"{type(extra).__name__!r} object given as a schema is none",
                "Give models, a callable or a string.",
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
            raise settings.error(
                "seed", "it cannot be called", "Name a function that takes the database's URL."
            )
        parts.append(Function(settings, "seed", settings.seed, function))
    models = [model for thing in things for model in adapter_of(thing).models(thing)]  # type: ignore[union-attr]
    if settings.bind:
        spec, handle = settings.bind, settings.load_object("bind", settings.bind)
        if (
            handle is not None and adapter_of(handle) is None
        ):  # None: an application factory will put one there
            raise settings.error(
                "bind",
                f"{type(handle).__name__!r} is not a database handle that dbclone knows",
                "Name a peewee database, a SQLAlchemy engine or a pool of psycopg_pool.",
            )
        return schema_of(parts), Handle(lambda: _handle(imported(spec)), handle, models)
    handle = next((h for t in things for h in [adapter_of(t).handle(t)] if h is not None), None)  # type: ignore[union-attr]
    return schema_of(parts), handle if handle is None else Handle(lambda: None, handle, models)


def schema_of(parts: Sequence[Schema]) -> Schema:
    """Return one schema made of several, built in their order."""
    return parts[0] if len(parts) == 1 else Steps(parts)


def _handle(thing: Any) -> Any:
    """Return a thing if it is a handle of a kind that dbclone knows, else None."""
    return thing if thing is not None and adapter_of(thing) is not None else None


def named(settings: Settings) -> list[tuple[str, Any]]:
    """Return the handles that the settings name, each with that name, as far as their modules have
    been imported already."""
    if settings.bind:
        found = [(settings.bind, _handle(imported(settings.bind)))]
    else:
        things = [
            (spec, imported(spec))
            for spec in settings.schema
            if _OBJECT.match(spec) or _DOTTED.match(spec)
        ]
        found = [
            (f"of {spec}", adapter.handle(thing))
            for spec, thing in things
            if thing is not None and (adapter := adapter_of(thing)) is not None
        ]
    return [(name, handle) for name, handle in found if handle is not None]


def belongs(settings: Settings, target: Any) -> str:
    """Return the name of the handle that a target stands behind, or of which it shares the
    database; empty if there is none."""
    for name, handle in named(settings):
        with contextlib.suppress(SettingsError):
            for found in targets(handle):
                if found is target or (
                    (place := _known(target).place(target)) is not None
                    and place == _known(found).place(found)
                ):
                    return name
    return ""


def aside(settings: Settings) -> Callable[[], None]:
    """Put aside what the application has open on the handles that the settings name, so that
    whoever goes on has to connect first; return what gives it back."""
    stack = contextlib.ExitStack()
    for _, handle in named(settings):
        with contextlib.suppress(SettingsError):
            for target in targets(handle):
                adapter = _known(target)
                if (before := adapter.aside(target)) is not None:
                    stack.callback(adapter.back, target, before)
    return stack.close


def _known(target: Any) -> Adapter:
    """Return the adapter of a target."""
    adapter = adapter_of(target)
    assert adapter is not None, f"{type(target).__name__} is no target"
    return adapter


def targets(handle: Any) -> list[Any]:
    """Return the targets behind a handle at this moment. Raises SettingsError if it leads to
    something that is not PostgreSQL."""
    thing = present(handle)
    return (
        _known(thing).targets(thing, handle.models if isinstance(handle, Handle) else ())
        if thing is not None
        else []
    )


def _led(handle: Any) -> Iterator[Any]:
    """Yield the targets that are led to the clone for a handle, also those that are not behind it
    any more."""
    for lead in leads():
        if lead.name == "bound" and lead.handle is handle:
            yield from list(lead.done)


@contextlib.contextmanager
def bound(handle: Any, url: str) -> Iterator[None]:
    """Point the application's handle at a database for the block; do nothing without one.

    Host, user and database change, all other parameters stay. What comes to stand behind the handle
    in the block is pointed there too before it connects, and so is what connects to the database
    that the handle led to before. Raises SettingsError.
    """
    thing = present(handle)
    if handle is None:
        yield
        return
    places: set[Place] = set()

    def point(target: Any, before: Any) -> Any:
        adapter = _known(target)
        if (place := adapter.place(target)) not in (None, clone):
            places.add(place)
        return adapter.point(target, url, before)

    dsn = parse(url)
    clone = dsn.get("host"), dsn.get("port"), dsn.get("dbname")
    lead = Lead(
        "bound",
        handle,
        lambda: targets(handle),
        lambda target: _known(target).place(target) in places,
        point,
        lambda target, before: _known(target).point_back(target, before),
        lambda target, before: _known(target).strayed(target, before),
    )
    with contextlib.ExitStack() as stack:
        if thing is not None:
            stack.enter_context(_known(thing).filled(thing, url))
        stack.enter_context(lead.held())
        if thing is not None:
            stack.enter_context(_known(thing).notified(thing, lead.take))
        yield


@contextlib.contextmanager
def lent(handle: Any, session: Session) -> Iterator[None]:
    """Give the application's handle connections into a sandbox for the block, in every thread; do
    nothing without one.

    Its own connections wait aside, and come back afterwards. Raises SandboxLimit if it cannot be
    sandboxed.
    """
    thing = present(handle)
    if handle is None:
        yield
        return
    look()
    lead = Lead(
        "lent",
        handle,
        lambda: [
            *targets(handle),
            *(target for target in _led(handle) if _known(target).holds(target)),
        ],
        lambda target: any(target is found for found in _led(handle)),
        lambda target, before: _known(target).lend(target, session, before),
        lambda target, before: _known(target).take_back(target, before),
        lambda target, before: _known(target).escaped(target, before),
    )
    with (
        lead.held(),
        _known(thing).notified(thing, lead.take) if thing is not None else contextlib.nullcontext(),
    ):
        yield


def closed(handle: Any) -> None:
    """Close the connections of the application's handle, if there is one."""
    for target in {id(target): target for target in (*targets(handle), *_led(handle))}.values():
        _known(target).closed(target)


def refusal(handle: Any) -> str:
    """Return why the handle cannot work in a sandbox, or an empty string."""
    return next(
        (reason for target in targets(handle) if (reason := _known(target).refusal(target))), ""
    )


def parameters(handle: Any) -> dict[str, str]:
    """Return how the application's connections begin: their `options`, such as a search_path, if
    they have any."""
    return next((_known(target).parameters(target) for target in targets(handle)), {})


def login(handle: Any) -> tuple[str, str]:
    """Return (user, password) that the application's handle connects with by itself; empty where it
    does not say. Not to be asked while the handle is bound."""
    return next((_known(target).login(target) for target in targets(handle)), ("", ""))
