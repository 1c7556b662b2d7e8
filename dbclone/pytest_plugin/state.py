"""What one pytest process knows of its run: settings, identity, figures, and what it holds until
the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import printable
from ..process import project

if TYPE_CHECKING:
    from ..cli.progress import Progress
    from ..clone.report import Report
    from ..settings import Settings
    from ..template.template import Template
    from .handles import HandleGuard


_ESCAPED = "dbclone/escaped"  # a key of pytest's cache


def start(config: pytest.Config) -> Path:
    """Return the folder that a run's settings are looked for from."""
    return project.start_of(config.rootpath, config.invocation_params.dir)


def mentions_dbclone(root: Path) -> bool:
    """Whether a pyproject.toml of the project that a folder is in has settings of ours."""
    return next(project.tables(root), None) is not None


def warn(config: pytest.Config, lines: list[str]) -> None:
    """Tell a person at once, before pytest has begun to report anything."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
        for line in lines:
            print(f"dbclone: {printable(line)}", file=sys.stderr)


@contextlib.contextmanager
def real_files() -> Iterator[None]:
    """Stop pyfakefs for the block, if one of its fixtures was set up before ours: a server and
    locks are no fake ones."""
    module: Any = sys.modules.get("pyfakefs.fake_filesystem_unittest")
    fake = module.Patcher.PATCHER if module is not None else None
    with (
        module.Pause(fake) if fake is not None and fake.fs is not None else contextlib.nullcontext()
    ):
        yield


class State:
    """What one pytest process knows of its run."""

    def __init__(
        self, config: pytest.Config, settings: Settings | None, run: str, worker: str
    ) -> None:
        from ..clone.report import Report

        self.config = config
        self.settings = settings
        self.run = run
        self.worker = worker
        self.report: Report = Report()
        self.template: Template | None = None
        self.held = contextlib.ExitStack()
        self.guard: HandleGuard | None = None

    def needed(self) -> Settings:
        """Return the settings of a project in which a test asks for a database."""
        from ..settings import load

        if self.settings is None:
            self.settings = load(start(self.config))
        return self.settings

    def sources(self) -> tuple[Settings, Any]:
        """Return the settings, and the schema as an object if the project's hook gives one; a
        string from it is a setting."""
        from dataclasses import replace

        settings, given = self.needed(), self.config.hook.pytest_dbclone_schema(config=self.config)
        if isinstance(given, str):
            sources = {**settings.sources, "schema": "the hook pytest_dbclone_schema"}
            return replace(settings, schema=(given,), sources=sources), None
        return settings, given

    def read_escapes(self) -> set[str]:
        """Return the tests that were seen committing outside a sandbox in earlier runs; none
        without pytest's cache."""
        cache = getattr(self.config, "cache", None)
        found = cache.get(_ESCAPED, []) if cache is not None else []
        return (
            {test for test in found if isinstance(test, str)} if isinstance(found, list) else set()
        )

    def remember(self) -> None:
        """Add the tests that were seen in this run to those of earlier ones."""
        cache = getattr(self.config, "cache", None)
        if cache is not None and self.report.escaped:
            cache.set(_ESCAPED, sorted(self.read_escapes().union(self.report.escaped)))

    def progress(self) -> Progress:
        """Return what tells a person what a long build is doing, to be used in a `with` block."""
        from ..cli.progress import Progress

        return Progress(self._write)

    def _write(self, line: str) -> None:
        manager = self.config.pluginmanager
        reporter, capture = (
            manager.get_plugin("terminalreporter"),
            manager.get_plugin("capturemanager"),
        )
        if reporter is not None and capture is not None:
            # A fixture's output is captured, this is for whoever waits
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(line)
