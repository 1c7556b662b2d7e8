"""The pytest plugin: hooks, options, a marker and fixtures. What to do is decided in `runner`
and `clone`.

Installed but unasked it does nothing, and imports nothing: a project asks by a [tool.dbclone]
table, a DBCLONE_ variable, an option, or the `pytest_dbclone_schema` hook.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import Error, SettingsError, printable
from ..process import clock  # noqa: F401 - before a test can set the time
from .items import arrange, marker_arguments
from .state import State, mentions_dbclone, real_files, start, warn

if TYPE_CHECKING:
    from ..clone.clone import Clone
    from ..clone.isolation import Isolation
    from ..clone.report import Report

# The names of all settings, here so that offering them as options does not import anything; a test
# keeps the list complete.
OPTIONS = (
    "schema", "seed", "inputs", "bind", "role", "url", "env", "name", "reset", "autouse",
    "reset_sequences", "keep", "strict", "on_leak", "build_timeout", "lock_timeout",
    "connect_timeout", "clone_strategy", "clone_limit", "retain_templates", "retain_days",
    "encoding", "locale", "binaries", "data_dir", "keep_server", "cache_dir",
)  # fmt: skip
_FAILED = pytest.StashKey[bool]()


def add_option(group: Any) -> None:
    """Offer the option."""
    group.addoption(
        "--dbclone-keep-failed",
        type=_count,
        nargs="?",
        const=0,
        default=None,
        metavar="N",
        help="keep what failed tests left, in databases named after them: at most N, written with"
        " = (default: 5)",
    )


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from 1 to 1000; write --dbclone-keep-failed=5"
        )
    return int(text)


def note_outcome(item: pytest.Item, report: pytest.TestReport) -> None:
    """Remember that a test failed, and say in its report where what it left will be, as soon as its
    fixtures have ended."""
    isolation: Isolation | None = getattr(item, "funcargs", {}).get("dbclone")
    if (
        item.config.option.dbclone_keep_failed is None
        or not report.failed
        or report.when == "teardown"
        or isolation is None
    ):
        return
    item.stash[_FAILED] = True
    worker: Clone | None = item.funcargs.get("dbclone_worker")  # type: ignore[attr-defined]
    if worker is None:
        return
    from ..databases.naming import kept_name

    name = kept_name(worker.mark.project, item.nodeid)
    dsn = worker.server.database(name).replace(password="")
    lines = [
        "What this test left is kept when its fixtures have ended. Look at it with:",
        f"    python -m dbclone psql {name}",
    ]
    lines += [] if worker.server.embedded is not None else [f'    psql "{dsn.shown}"']
    report.sections.append(("dbclone", "\n".join(lines)))


def keep_if_failed(item: Any, isolation: Isolation) -> None:
    """Have what a test left kept if the test has failed and somebody asked for it."""
    if item.stash.get(_FAILED, False):
        isolation.keep(item.nodeid)


class Hooks:
    """Hooks that a project may implement in its conftest."""

    @pytest.hookspec(firstresult=True)
    def pytest_dbclone_schema(self, config: pytest.Config) -> Any:
        """Return what goes into the template: models, a callable taking a URL, or a string as in
        the settings."""


STATE = pytest.StashKey[State]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dbclone", "dbclone: every test its own Postgres state")
    for name in OPTIONS:
        group.addoption(
            f"--dbclone-{name.replace('_', '-')}",
            dest=f"dbclone_{name}",
            default=None,
            metavar="VALUE",
            help=f"overrides {name} in [tool.dbclone]",
        )
    add_option(group)
    group.addoption(
        "--dbclone-rebuild",
        action="store_true",
        default=False,
        help="build the template again even if it is there",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(Hooks)


def _is_controller(namespace: Any) -> bool:
    """Whether other processes will run the tests of this one."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return False
    distributed = getattr(namespace, "numprocesses", None) or getattr(namespace, "tx", None)
    return (bool(distributed) and getattr(namespace, "dist", "load") != "no") or bool(
        getattr(namespace, "numprocesses", None)
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Bind the names of the clone before anything of the project is imported."""
    namespace = early_config.known_args_namespace
    given = {name: getattr(namespace, f"dbclone_{name}", None) for name in OPTIONS}
    asked = any(given.values()) or any(key.startswith("DBCLONE_") for key in os.environ)
    if not asked and not mentions_dbclone(start(early_config)):
        return
    from .. import runner, settings

    try:
        found = settings.load(start(early_config), given, prefix="--dbclone-")
        if not found.sources:
            return
        run_id, worker = runner.identity()
        if not os.environ.get("PYTEST_XDIST_WORKER"):
            warn(early_config, found.leads_outside)
        if not _is_controller(namespace):
            with contextlib.suppress(Error):  # whatever is wrong is said when a test needs it
                runner.export_environment(runner.predicted_environment(found, worker, run_id))
    except SettingsError as error:
        raise pytest.UsageError(f"dbclone.SettingsError: {error}") from None
    early_config.stash[STATE] = state = State(early_config, found, run_id, worker)
    if found.bind or found.schema:
        from .handles import HandleGuard

        state.guard = HandleGuard(found)
        early_config.pluginmanager.register(state.guard, "dbclone handles")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "dbclone(reset=None, reset_sequences=None): isolate this test; reset is auto, rollback,"
        " truncate, clone, drop or none (see the README)",
    )


def _asked(config: pytest.Config) -> State:
    """Return the process's state, in which the test that runs is isolated from now on."""
    state = _state(config)
    if state.guard is not None:
        state.guard.isolate_running_test()
    return state


def _state(config: pytest.Config) -> State:
    """Return the process's state; a project without settings gets one when its first test asks."""
    if STATE not in config.stash:
        from .. import runner

        run_id, worker = runner.identity()
        config.stash[STATE] = State(config, None, run_id, worker)
    return config.stash[STATE]


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    if STATE not in config.stash or hasattr(config, "workerinput"):
        return None
    settings = config.stash[STATE].needed()
    from .. import runner

    try:
        server = runner.target(settings)
    except SettingsError:  # said when a test needs it
        server = f"server from {settings.source('url')}"
    how = f"reset={settings.reset}" + (
        f" (from {settings.source('reset')})" if "reset" in settings.sources else ""
    )
    lines = [f"project {ascii(settings.project)[1:-1]}, {server}, {how}", *runner.remarks(settings)]
    return [printable(f"dbclone: {line}") for line in lines]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """On xdist's controller, ensure server and template before any worker starts, so that workers
    never race for them."""
    config = session.config
    if (
        not _is_controller(config.option)
        or hasattr(config, "workerinput")
        or config.option.collectonly
    ):
        return
    if STATE not in config.stash and config.hook.pytest_dbclone_schema(config=config) is None:
        return
    state = _state(config)
    settings, schema = state.sources()
    if not settings.schema and schema is None:
        return
    from .. import runner

    try:
        with state.progress() as progress:
            held = runner.controller(
                settings, schema, config.option.dbclone_rebuild, progress, state.report.note
            )
            state.template = state.held.enter_context(held)
    except SettingsError as error:
        raise pytest.UsageError(f"dbclone.SettingsError: {error}") from None
    except Error as error:
        pytest.exit(
            f"dbclone.{type(error).__name__}: {error}", returncode=pytest.ExitCode.TESTS_FAILED
        )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if STATE not in config.stash:
        return
    state = config.stash[STATE]
    _quietly(state)
    if hasattr(config, "workeroutput"):
        config.workeroutput["dbclone"] = state.report.data()
    else:
        state.remember()


def pytest_unconfigure(config: pytest.Config) -> None:
    if STATE in config.stash:
        state = config.stash[STATE]
        _quietly(state)
        if state.guard is not None:
            state.guard.close()


def _quietly(state: State) -> None:
    """Let go of the server; failing to clean up never fails a run, the next one does it."""
    try:
        state.held.close()
    except Exception as error:
        state.report.note(
            f"cleaning up failed and is left to the next run: {type(error).__name__}: {error}"
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    note_outcome(item, outcome.get_result())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Merge a worker's figures into the controller's."""
    figures = getattr(node, "workeroutput", {}).get("dbclone")
    if figures and STATE in node.config.stash:
        from ..clone.report import Report

        node.config.stash[STATE].report.merge(Report.of(figures))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if STATE not in config.stash or hasattr(config, "workerinput"):
        return
    state = config.stash[STATE]
    lines = state.report.lines()
    if state.template is not None:
        from ..clone.report import template_line

        template = state.template
        lines.insert(
            0, template_line(template.name, template.built, template.seconds, template.why)
        )
    if state.report.resets or state.report.clones or state.report.notes:
        terminalreporter.section("dbclone", sep="-")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add our fixtures to the tests that want isolation, and put them first in their scope: what
    other fixtures write is then inside the isolation that its scope belongs to."""
    autouse = STATE in config.stash and config.stash[STATE].needed().autouse
    for item in items:
        try:
            arrange(item, autouse)
        except SettingsError as error:
            raise pytest.UsageError(f"dbclone.SettingsError: {error}") from None


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Show our own errors as they are, without a traceback through dbclone."""
    try:
        yield
    except Error as error:
        cause = error.__cause__
        if cause is not None:
            raise
        pytest.fail(f"dbclone.{type(error).__name__}: {error}", pytrace=False)


@pytest.fixture(scope="session")
def dbclone_worker(request: pytest.FixtureRequest) -> Iterator[Clone]:
    """This worker's clone for the whole session: a `dbclone.Clone`, to which the application's
    handle is bound."""
    from .. import runner

    state = _state(request.config)
    with contextlib.ExitStack() as stack:
        with _clear_errors(), real_files(), state.progress() as progress:
            settings, schema = state.sources()
            if hasattr(request.config, "workerinput"):
                clone = stack.enter_context(
                    runner.worker(settings, state.worker, state.run, schema, progress)
                )
            else:
                rebuild = bool(request.config.option.dbclone_rebuild)
                both = runner.single_process(
                    settings, state.worker, state.run, schema, rebuild, progress, state.report.note
                )
                state.template, clone = stack.enter_context(both)
            clone.report = _merged(state.report, clone.report)
            clone.escalated.update(state.read_escapes())
            if state.guard is not None:
                state.guard.clone = clone
            clone.keep_count = request.config.option.dbclone_keep_failed or clone.keep_count
        yield clone
        with real_files():
            # Dropped when the session ends: a busy server takes seconds, which are no test's
            state.held.push(stack.pop_all())


def _merged(report: Report, other: Report) -> Report:
    report.merge(other)
    return report


def _layer(request: pytest.FixtureRequest, clone: Clone) -> Iterator[Isolation]:
    with contextlib.ExitStack() as stack:
        with _clear_errors():
            _asked(request.config)
            isolation = stack.enter_context(clone.layer(request.node.nodeid))
        yield isolation


@pytest.fixture(scope="module")
def dbclone_module(request: pytest.FixtureRequest, dbclone_worker: Clone) -> Iterator[Isolation]:
    """Data for a whole module: what is written while this fixture is set up stays until the
    module's last test, and each test's own writes are undone on top of it."""
    yield from _layer(request, dbclone_worker)


@pytest.fixture(scope="class")
def dbclone_class(request: pytest.FixtureRequest, dbclone_worker: Clone) -> Iterator[Isolation]:
    """Data for a whole class, as `dbclone_module`."""
    yield from _layer(request, dbclone_worker)


@pytest.fixture
def dbclone(request: pytest.FixtureRequest, dbclone_worker: Clone) -> Iterator[Isolation]:
    """This test's own state of the database: a `dbclone.Isolation`, undone when the test and its
    other fixtures have ended."""
    with contextlib.ExitStack() as stack:
        with _clear_errors(), real_files():
            asked = marker_arguments(
                request.node.get_closest_marker("dbclone"), request.node.nodeid
            )
            settings = _asked(request.config).needed()
            isolation = stack.enter_context(
                dbclone_worker.isolated(
                    asked["reset"] or settings.reset, request.node.nodeid, asked["reset_sequences"]
                )
            )
        yield isolation
        with _clear_errors(), real_files():
            keep_if_failed(request.node, isolation)
            stack.close()


@pytest.fixture
def dbclone_db(dbclone: Isolation) -> Isolation:
    """The same as `dbclone`, for a test that needs the package of that name too:
    `pytest.raises(dbclone.SandboxLimit)`."""
    return dbclone
