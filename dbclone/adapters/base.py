"""The interface of an adapter: what dbclone has to be told of a library whose objects connect to a
database.

A *handle* is what an application names: a Database, a Proxy, an Engine, a sessionmaker, a pool.
Behind it stand *targets*, which connect. An `Adapter` knows the kinds of a library and finds the
targets behind a handle; a `Target` leads one of them elsewhere and back. To bring one, derive from
both and name the Adapter in the entry-point group `dbclone.adapters`, under the top-level package
of the library:

    [project.entry-points."dbclone.adapters"]
    acme = "acme_dbclone:AcmeAdapter"

The module is imported when an object whose class, or a base of it, comes from that package is first
looked up. It should call `hooks.door` for each method that gets a target its connections: there the
handle is followed when the application puts something else behind it, and a test that uses it
without isolation is told so. An author needs this module, `hooks.door`, and from `dbclone.errors`
what they raise; all of them are light.
"""

from __future__ import annotations

import abc
import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..sandbox.session import Session
    from ..schema.sources import Schema
    from ..settings import Settings

__all__ = ["Adapter", "Place", "Target"]
Place = tuple[str, str, str]  # host, port and name of a database


class Adapter(abc.ABC):
    """What there is to know of one library. One object of it is made in a process, without
    arguments; it remembers nothing."""

    @abc.abstractmethod
    def target(self, thing: Any) -> Target:
        """Return a new Target for one of the things that `targets` returns."""

    def schema(self, settings: Settings, spec: str, thing: Any) -> Schema:
        """Return the schema that `thing` describes: models, metadata, a module of them.

        `spec` is what the settings call it. Raises `settings.error("schema", …)`, a SettingsError,
        where it describes none, as by itself a handle does not.
        """
        raise settings.error(
            "schema",
            f"{spec} is {type(thing).__name__!r}, which is not a schema",
            "Name SQL files or a command as the schema, and the handle in bind.",
        )

    def handle(self, thing: Any) -> Any:
        """Return the handle that the models in `thing` use, or None if they name none."""
        return None

    def models(self, thing: Any) -> Sequence[Any]:
        """Return the models in `thing` that name the database which they use; `targets` is given
        them."""
        return ()

    def targets(self, handle: Any, models: Sequence[Any]) -> list[Any]:
        """Return what connects, at this moment, for `handle` and `models`: the library's own
        objects, which must be hashable and take weak references. Raises SettingsError if they lead
        to something that is not PostgreSQL."""
        return [handle]

    @contextlib.contextmanager
    def fill(self, handle: Any, url: str) -> Iterator[None]:
        """Put something that leads to `url` behind a handle that has nothing behind it yet, until
        the block ends or the application puts something of its own there."""
        yield

    @contextlib.contextmanager
    def watch(self, handle: Any, take: Callable[[Any], Any]) -> Iterator[None]:
        """Call `take` for the block with each target that the handle makes itself, before anything
        uses it; `take` returns it. Not needed for what passes a door (see `hooks`)."""
        yield


class Target(abc.ABC):
    """One thing that connects, and where it is led for as long as one block lasts.

    It is led in two ways, independent of each other: `point_at` leads its connections to another
    database, `sandbox` gives it other connections. Each block has an object of its own for that,
    which holds what has to come back. `thing` is referred to weakly, because what an application
    drops must go; nothing that is kept here may refer to it.
    """

    def __init__(self, thing: Any) -> None:
        self._thing = weakref.ref(thing)

    @property
    def thing(self) -> Any:
        """The library's own object, which whoever calls a method here holds."""
        found = self._thing()
        assert found is not None, "a target is gone"
        return found

    @abc.abstractmethod
    def place(self) -> Place | None:
        """Return where its next connection would lead to; None if it does not say."""

    @abc.abstractmethod
    def point_at(self, url: str) -> None:
        """Lead it to `url`: host, user, password and database change, all other parameters stay.

        Connections that it has open are closed. When this has been called already, the application
        has led it elsewhere since; what comes back is still what was there at first.
        """

    @abc.abstractmethod
    def point_back(self) -> None:
        """Close its connections and lead it where it led before `point_at`."""

    def strayed(self) -> bool:
        """Return whether the application has led it elsewhere since `point_at`."""
        return False

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections that it has open, because their database is about to be replaced;
        it makes new ones when they are wanted."""

    def unsupported_reason(self) -> str:
        """Return why it cannot be given a sandbox, as a clause without a full stop; empty if it
        can."""
        return f"the adapter of {type(self.thing).__name__} knows no sandbox"

    def sandbox(self, session: Session) -> None:
        """Have it take its connections from `session.connect` or `session.aconnect`, in every
        thread; its own wait aside.

        Called again after `escaped`. Raises SandboxLimit if there is an `unsupported_reason`.
        """
        from ..errors import SandboxLimit

        reason = self.unsupported_reason()
        raise SandboxLimit(
            "this project's handle cannot be isolated by rollback",
            f"{reason[:1].upper()}{reason[1:]}.",
            'Set reset = "truncate".',
        )

    def unsandbox(self) -> None:  # noqa: B027 (nothing to do for who has no sandbox)
        """Give it the connections back that it had before `sandbox`; it makes its own again."""

    def escaped(self) -> bool:
        """Return whether the application has led it out of the sandbox since."""
        return False

    def has_connection(self) -> bool:
        """Return whether it has a connection that is used without asking for one."""
        return False

    def put_aside(self) -> Callable[[], None] | None:
        """Take such a connection away, so that the next statement has to ask for one; return what
        gives it back. None if there is none to give back."""
        return None

    def connection_parameters(self) -> dict[str, str]:
        """Return the libpq parameters that the real connection of a sandbox has to have because the
        application's own do: `options`, if they have any."""
        return {}

    def login(self) -> tuple[str, str]:
        """Return (user, password) that it connects with while it is led nowhere, as far as it
        says."""
        return "", ""
