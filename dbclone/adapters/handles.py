"""The application's handle, as the other packages see it: what the settings name, and what can be
done to whatever stands behind it.

Here is which targets are meant and in which order; what is done to one of them is the adapter's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import NotIsolated, SettingsError
from ..sandbox.session import Session
from ..schema.programs import wrapped_commands
from ..schema.sources import Command, Function, Schema, SqlFiles, Steps
from ..server.dsn import parse
from ..settings import Settings
from . import hooks
from .base import Place, Target
from .discovery import adapter_of, require_adapter, target_of
from .following import Handle, Lead, find_imported, is_led, leads, look, present
from .migrations.source import Migrations, tool

__all__ = [
    "adapter_of", "belongs", "bound_to", "close", "connection_parameters", "is_led", "load",
    "login", "look", "named_handles", "present", "put_aside", "sandboxed", "unsupported_reason",
]  # fmt: skip
_OBJECT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")


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
        if wrapped := next((line for line in wrapped_commands(spec) if tool(line)), None):
            raise settings.error(
                "schema",
                f"{wrapped!r} is hidden in another command",
                f"Write schema = {wrapped!r}, and set variables where dbclone is started.",
                "dbclone leads this tool to the database being built, wherever its files point, and"
                " can do so only if it runs it itself.",
            )
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
    with hooks.watched(_importing(settings)), hooks.expected():
        return _load(settings, extra)


def _importing(settings: Settings) -> hooks.Watcher:
    """Return a watcher that refuses the use of the settings' handle by a module that is imported:
    it would connect to the application's own database."""

    def refuse(target: Any, use: bool) -> None:
        if use and not is_led("bound") and (name := belongs(settings, target)):
            raise NotIsolated(
                f"the database handle {name} is used while dbclone imports the project",
                "A module connects when it is imported, to the application's own database.",
                "Connect in functions, not while modules are imported.",
            )

    return refuse


def _load(settings: Settings, extra: Any) -> tuple[Schema, Any]:
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
        return schema_of(parts), Handle(lambda: _handle(find_imported(spec)), handle, models)
    handle = next((h for t in things for h in [adapter_of(t).handle(t)] if h is not None), None)  # type: ignore[union-attr]
    return schema_of(parts), handle if handle is None else Handle(lambda: None, handle, models)


def schema_of(parts: Sequence[Schema]) -> Schema:
    """Return one schema made of several, built in their order."""
    return parts[0] if len(parts) == 1 else Steps(parts)


def _handle(thing: Any) -> Any:
    """Return a thing if it is a handle of a kind that dbclone knows, else None."""
    return thing if thing is not None and adapter_of(thing) is not None else None


def named_handles(settings: Settings) -> list[tuple[str, Any]]:
    """Return the handles that the settings name, each with that name, as far as their modules have
    been imported already."""
    if settings.bind:
        found = [(settings.bind, _handle(find_imported(settings.bind)))]
    else:
        things = [
            (spec, find_imported(spec))
            for spec in settings.schema
            if _OBJECT.match(spec) or _DOTTED.match(spec)
        ]
        found = [
            (f"of {spec}", adapter.handle(thing))
            for spec, thing in things
            if thing is not None and (adapter := adapter_of(thing)) is not None
        ]
    return [(name, handle) for name, handle in found if handle is not None]


def belongs(settings: Settings, thing: Any) -> str:
    """Return the name of the handle that a target stands behind, or of which it shares the
    database; empty if there is none."""
    for name, handle in named_handles(settings):
        with contextlib.suppress(SettingsError):
            for found in _things(handle):
                if found is thing or (
                    (place := target_of(thing).place()) is not None
                    and place == target_of(found).place()
                ):
                    return name
    return ""


def put_aside(settings: Settings) -> Callable[[], None]:
    """Put aside what the application has open on the handles that the settings name, so that
    whoever goes on has to connect first; return what gives it back."""
    stack = contextlib.ExitStack()
    for _, handle in named_handles(settings):
        with contextlib.suppress(SettingsError):
            for thing in _things(handle):
                if (give_back := target_of(thing).put_aside()) is not None:
                    stack.callback(give_back)
    return stack.close


def _things(handle: Any) -> list[Any]:
    """Return what connects for a handle at this moment. Raises SettingsError if that is not
    PostgreSQL."""
    thing = present(handle)
    if thing is None:
        return []
    return require_adapter(thing).targets(
        thing, handle.models if isinstance(handle, Handle) else ()
    )


def _led_things(handle: Any) -> Iterator[Any]:
    """Yield what is led to the clone for a handle, also what is not behind it any more."""
    for lead in leads():
        if lead.name == "bound" and lead.handle is handle:
            yield from list(lead.done)


@contextlib.contextmanager
def bound_to(handle: Any, url: str) -> Iterator[None]:
    """Point the application's handle at a database for the block; do nothing without one.

    Host, user and database change, all other parameters stay. What comes to stand behind the handle
    in the block is pointed there too before it connects, and so is what connects to the database
    that the handle led to before. Raises SettingsError.
    """
    if handle is None:
        yield
        return
    places: set[Place] = set()
    dsn = parse(url)
    clone = dsn.get("host"), dsn.get("port"), dsn.get("dbname")

    def point(target: Target) -> None:
        if (place := target.place()) not in (None, clone):
            places.add(place)
        target.point_at(url)

    lead = Lead(
        "bound",
        handle,
        lambda: _things(handle),
        lambda thing: target_of(thing).place() in places,
        point,
        lambda target: target.point_back(),
        lambda target: target.strayed(),
    )
    thing = present(handle)
    adapter = require_adapter(thing) if thing is not None else None
    with contextlib.ExitStack() as stack:
        if adapter is not None:
            stack.enter_context(adapter.fill(thing, url))
        stack.enter_context(lead.held())
        if adapter is not None:
            stack.enter_context(adapter.watch(thing, lead.take))
        yield


@contextlib.contextmanager
def sandboxed(handle: Any, session: Session) -> Iterator[None]:
    """Give the application's handle connections into a sandbox for the block, in every thread; do
    nothing without one.

    Its own connections wait aside, and come back afterwards. Raises SandboxLimit if it cannot be
    sandboxed.
    """
    if handle is None:
        yield
        return
    look()
    lead = Lead(
        "sandboxed",
        handle,
        lambda: [
            *_things(handle),
            *(thing for thing in _led_things(handle) if target_of(thing).has_connection()),
        ],
        lambda thing: any(thing is found for found in _led_things(handle)),
        lambda target: target.sandbox(session),
        lambda target: target.unsandbox(),
        lambda target: target.escaped(),
    )
    thing = present(handle)
    adapter = require_adapter(thing) if thing is not None else None
    with (
        lead.held(),
        adapter.watch(thing, lead.take) if adapter is not None else contextlib.nullcontext(),
    ):
        yield


def close(handle: Any) -> None:
    """Close the connections of the application's handle, if there is one."""
    for thing in {id(thing): thing for thing in (*_things(handle), *_led_things(handle))}.values():
        target_of(thing).close()


def unsupported_reason(handle: Any) -> str:
    """Return why the handle cannot work in a sandbox, or an empty string."""
    reasons = (target_of(thing).unsupported_reason() for thing in _things(handle))
    return next((reason for reason in reasons if reason), "")


def connection_parameters(handle: Any) -> dict[str, str]:
    """Return how the application's connections begin: their `options`, such as a search_path, if
    they have any."""
    return next((target_of(thing).connection_parameters() for thing in _things(handle)), {})


def login(handle: Any) -> tuple[str, str]:
    """Return (user, password) that the application's handle connects with by itself; empty where it
    does not say. Not to be asked while the handle is bound."""
    return next((target_of(thing).login() for thing in _things(handle)), ("", ""))
