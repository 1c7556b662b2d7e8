"""The application's handle is followed: whatever comes to stand behind it, while it is led
somewhere, is led there too.

A handle is a name; behind it stand *targets*, which connect: a peewee Database, an Engine, a pool.
An application may put others there at any time: by a Proxy's `initialize`, a sessionmaker's
`configure`, `init`, `bind`, or by an assignment to the attribute of a module that the settings
name. So each target is asked when it is about to connect (see `doors`) whether it stands behind the
handle now, or connects to the database that the handle named before it was led away. Then what was
done to the others is done to it first.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..process.forks import OwnerProcess
from . import hooks
from .base import Target
from .discovery import target_of

__all__ = ["Handle", "Lead", "find_imported", "is_led", "leads", "look", "present"]


def find_imported(spec: str) -> Any:
    """Return what `module:attribute`, or a module's name, means at present, without importing
    anything; None if nothing."""
    module, _, path = spec.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split(".") if path else ():
        try:
            found = getattr(found, part, None)
        except Exception:  # of a Proxy or a property of the project
            return None
    return found


class Handle:
    """A handle by the name that the settings give it, looked up anew whenever it matters.

    Arguments: `find`, returns what it is at present, or None where that is no handle; `found`, what
    it is at first; `models`, those of the schema, whose databases belong to it.
    """

    def __init__(self, find: Callable[[], Any], found: Any, models: Sequence[Any] = ()) -> None:
        self._find, self._last, self.models = find, found, models

    @property
    def now(self) -> Any:
        """The application's object: the last that was one."""
        found = self._find()
        if found is not None:
            self._last = found
        return self._last


def present(handle: Any) -> Any:
    """Return the application's own object behind `handle`, which may be that already."""
    return handle.now if isinstance(handle, Handle) else handle


class Lead:
    """What is done to each target behind a handle for a block, and undone at its end, also to those
    that come in it.

    Targets are remembered weakly: a test may make an application of its own, and the next one
    another. Arguments: `name`, of what is done; `handle`, the one that it is done to; `behind`,
    returns the targets; `at`, tells whether a target that is not among them belongs to the handle
    by where it connects to; `do` and `undo`, what is done; `strayed`, tells whether the application
    has undone it since, and it has to be done again, to the same object.
    """

    def __init__(
        self,
        name: str,
        handle: Any,
        behind: Callable[[], Sequence[Any]],
        at: Callable[[Any], bool],
        do: Callable[[Target], None],
        undo: Callable[[Target], None],
        strayed: Callable[[Target], bool],
    ) -> None:
        self.name, self.handle, self.behind, self.at = name, handle, behind, at
        self._do, self._undo, self._strayed = do, undo, strayed
        self.done: weakref.WeakKeyDictionary[Any, Target] = weakref.WeakKeyDictionary()
        self._busy: set[int] = set()
        self._lock = threading.RLock()
        self._over = False

    def __call__(self, target: Any, use: bool) -> None:
        """Do it to a target that belongs to the handle and has not had it yet."""
        __tracebackhide__ = True
        if self._over:
            return
        if target in self.done:
            if not self._strayed(self.done[target]) or self._covered(target):
                return
        elif not (any(target is found for found in self.behind()) or (use and self.at(target))):
            return
        self.take(target)

    def _covered(self, target: Any) -> bool:
        """Whether a later lead, inside this one, has the target elsewhere on purpose."""
        later = leads()
        return any(
            lead.name == self.name and target in lead.done
            for lead in later[later.index(self) + 1 :]
        )

    def take(self, target: Any) -> Any:
        """Do it to a target, and return it."""
        with self._lock:
            if id(target) not in self._busy:
                self._busy.add(id(target))
                try:
                    led = self.done.get(target) or target_of(target)
                    self._do(led)
                    self.done[target] = led
                finally:
                    self._busy.discard(id(target))
        return target

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Do it for the block to what is behind the handle, or comes there."""
        home = OwnerProcess()
        with hooks.watched(self):
            try:
                for target in self.behind():
                    if target not in self.done:
                        self.take(target)
                yield
            finally:
                self._over = True
                if not home.forked:
                    with contextlib.ExitStack() as stack:
                        done = list(self.done.items())  # with what targets refer to weakly
                        for _, led in done:
                            stack.callback(self._undo, led)


def leads() -> list[Lead]:
    """Return the leads of this process that are on, outermost first."""
    return [watcher for watcher in hooks.watchers if isinstance(watcher, Lead)]


def look() -> None:
    """Follow what has been put behind a handle without passing a door, by an assignment."""
    found = leads()
    for lead in found:
        for target in lead.behind():
            for each in found:
                each(target, False)


def is_led(name: str) -> bool:
    """Whether a lead of that name is on."""
    return any(lead.name == name for lead in leads())
