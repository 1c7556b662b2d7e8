"""In a run with settings the application's handle connects where something of ours isolates it, and
nowhere else.

A test that forgot its fixture, a fixture, or a module that connects when it is imported would reach
the developer's own database before there is a clone, and would afterwards leave in the clone what
no reset knows. They are refused by name, before they connect.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ..adapters import hooks
from ..errors import NotIsolated
from ..settings import Settings
from .items import BINDING, ISOLATING

if TYPE_CHECKING:
    from ..clone.clone import Clone

__all__ = ["HandleGuard"]
_OLD = re.compile(r"_(?:unittest|xunit)_(\w+?)_fixture_(.+)")


class Ended:
    """What is left of a guard when its run has ended, until the process has: a thread that outlived
    its test, or what is registered with atexit, would reach the application's own database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, target: Any, use: bool) -> None:
        """Raise NotIsolated if `target` belongs to the handle, and is about to be used."""
        __tracebackhide__ = True
        from ..adapters import handles as adapters

        if use and (name := adapters.belongs(self._settings, target)):
            raise NotIsolated(
                f"the database handle {name} is used after the tests have ended",
                "By a thread, or by what is called at the end of the process. It would connect to"
                " the application's own database.",
                "End it in the teardown of a fixture.",
            )


class HandleGuard:
    """A plugin of its own, registered in runs that have settings which may name a handle."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._item: Any = None  # the test that runs, its setup and teardown included
        self._bare = self._alone = (
            False  # it asks for nothing of ours; it is not isolated, whatever its fixtures ask for
        )
        self._fixtures: list[Any] = []  # that are being set up
        self._prepared = False  # whether the library of what bind names has been looked at
        self._closing = False  # whether the end of what belongs to the test alone will be told
        self.clone: Clone | None = None  # of this process, when it has been made
        self._place = "a plugin or a conftest.py"  # where we are outside tests
        self._said: NotIsolated | None = None
        self._aside = contextlib.ExitStack()
        self._held = contextlib.ExitStack()
        hooks.watchers[:] = [w for w in hooks.watchers if not isinstance(w, Ended)]
        self._held.enter_context(hooks.watched(self))
        self._held.enter_context(hooks.expected())

    def close(self) -> None:
        """Watch nothing any more but what still runs when the tests have ended."""
        self._held.close()
        hooks.watchers.append(Ended(self._settings))

    def isolate_running_test(self) -> None:
        """Take the test that runs for isolated: an isolating fixture has been set up in it, whoever
        asked for it."""
        self._bare = self._alone = False

    def __call__(self, target: Any, use: bool) -> None:
        """Raise NotIsolated if `target` belongs to the handle, and is about to be used where it
        must not."""
        __tracebackhide__ = True
        if not use:
            return
        from ..adapters import handles as adapters

        bound = adapters.is_led("bound")
        if bound and not self._refused():
            return
        name = adapters.belongs(self._settings, target)
        if not name or (self._opted_out() and self._made()):
            return
        error = self._error(name, bound)
        if threading.current_thread() is threading.main_thread():
            self._said = (
                error  # what is said in another thread is no word on the test that runs now
            )
        raise error

    def _refused(self) -> bool:
        if self._item is None or (self.clone is not None and self.clone.isolating):
            return False
        if any(fixture.argname in (*ISOLATING, *BINDING) for fixture in self._fixtures):
            return False  # one of ours, that a test asks for while it runs
        return self._bare if self._wide() else self._alone

    def _wide(self) -> bool:
        """Whether a fixture is being set up that several tests share."""
        return bool(self._fixtures) and self._fixtures[-1].scope != "function"

    def _opted_out(self) -> bool:
        marker = self._item.get_closest_marker("dbclone") if self._item is not None else None
        return marker is not None and marker.kwargs.get("reset") == "none"

    def _made(self) -> bool:
        """Make the clone for a test that wants no isolation, and whether it is there: such a test
        is asked to do nothing more."""
        request = getattr(self._item, "_request", None)
        if request is None or threading.current_thread() is not threading.main_thread():
            return False
        request.getfixturevalue("dbclone_worker")
        return True

    def _error(self, name: str, bound: bool) -> NotIsolated:
        handle = f"the database handle {name}"
        where = (
            "the clone, where nothing would undo what it writes"
            if bound
            else "the application's own database"
        )
        if self._item is None:
            return NotIsolated(
                f"{handle} is used by {self._place}",
                "It would connect to the application's own database: there is no clone"
                " before the first test that asks for one.",
                "Connect in tests or fixtures, not while modules are imported.",
            )
        test = self._item.nodeid
        if not self._refused():
            return NotIsolated(
                f"{handle} is used in {test} before dbclone has led it to the clone",
                "By a fixture that was set up first, or by a module that connects when it is"
                " imported. It would connect to the application's own database.",
                "Ask for dbclone_worker in the fixture; connect in tests or fixtures, not"
                " while modules are imported.",
            )
        if self._wide():
            fixture = self._fixtures[-1]
            ours = {"class": "dbclone_class", "module": "dbclone_module"}.get(
                fixture.scope, "dbclone_worker"
            )
            old = _OLD.match(fixture.argname)  # setUpClass and the like are fixtures to pytest
            shown, whose = (
                (f"{old[1]} of {old[2]}", "its tests")
                if old
                else (f"fixture {fixture.argname!r}", "the fixture")
            )
            return NotIsolated(
                f"{handle} is used by {shown}, set up for {test}, without isolation",
                f"Neither it nor that test asks for a fixture of dbclone. It would connect to"
                f" {where}.",
                f"Ask for {ours} in {whose}, or for dbclone in the test, or set autouse ="
                f" true in [tool.dbclone].",
            )
        return NotIsolated(
            f"{handle} is used by {test} without isolation",
            f"The test does not ask for the fixture dbclone. It would connect to {where}.",
            "Add dbclone to the test's arguments, or @pytest.mark.dbclone to it, or set"
            " autouse = true in [tool.dbclone].",
        )

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        self._place = f"{collector.nodeid or 'the session'}, while it is collected"
        yield
        self._place = "what runs outside of tests"

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        names = set(getattr(item, "fixturenames", ()))
        direct = getattr(getattr(item, "_fixtureinfo", None), "initialnames", ())
        self._item, self._fixtures, self._closing = item, [], False
        self._prepare()
        out = self._opted_out()
        self._bare = not (out or names & {*ISOLATING, *BINDING})
        self._alone = not (out or names & set(ISOLATING) or set(direct) & set(BINDING))
        with contextlib.ExitStack() as self._aside:
            if self._bare:
                self._put_aside()
            yield
        self._item, self._said = None, None

    def _prepare(self) -> None:
        """Have the doors of the library of the handle that `bind` names, as soon as that is there:
        also if only somebody else's adapter knows them."""
        if not self._prepared and self._settings.bind:
            from ..adapters.discovery import prepare
            from ..adapters.following import find_imported

            handle = find_imported(self._settings.bind)
            self._prepared = handle is not None
            prepare(handle)

    def _put_aside(self) -> None:
        """Put aside, until the test has ended, what is open on the handle, so that whoever uses it
        now has to connect first."""
        if hooks.used[0]:
            from ..adapters import handles as adapters

            self._aside.callback(adapters.put_aside(self._settings))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        if self._alone and not self._closing:
            # Registered before any other, it is called after all that belongs to the test alone has
            # been torn down.
            self._closing = True
            self._item.addfinalizer(self._over)
        self._fixtures.append(fixturedef)
        if self._alone and not self._wide():
            self._put_aside()
        try:
            yield
        finally:
            self._fixtures.pop()

    def _over(self) -> None:
        """Take the rest of a teardown, of what several tests share, for nobody's."""
        self._bare = self._alone = False
        self._aside.close()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        yield from self._phase()
        if self._alone and not self._closing:
            try:
                self._item.addfinalizer(self._over)
            # Its module or class could not be set up: nothing belongs to the test alone
            except AssertionError:
                self._over()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        if self._alone:
            self._put_aside()
        elif hooks.used[0]:
            from ..adapters import handles as adapters

            adapters.look()
        yield from self._phase()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        yield from self._phase()

    def _phase(self) -> Iterator[None]:
        """Fail a phase in which the handle was refused,
        although the application has swallowed the error."""
        self._said = None
        outcome: Any = yield
        if self._said is not None and outcome.excinfo is None:
            outcome.force_exception(self._said)
