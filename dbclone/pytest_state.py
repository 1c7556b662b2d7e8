"""What one pytest process knows of its run: settings, identity, figures, and what it holds until the end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .progress import Progress
    from .report import Report
    from .settings import Settings
    from .template import Template


class State:
    """What one pytest process knows of its run."""

    def __init__(self, config: pytest.Config, settings: Settings | None, run: str, worker: str) -> None:
        from .report import Report

        self.config = config
        self.settings = settings
        self.run = run
        self.worker = worker
        self.report: Report = Report()
        self.template: Template | None = None
        self.held = contextlib.ExitStack()

    def needed(self) -> Settings:
        """Return the settings of a project in which a test asks for a database."""
        from .settings import load

        if self.settings is None:
            self.settings = load(self.config.rootpath)
        return self.settings

    def sources(self) -> tuple[Settings, Any]:
        """Return the settings, and the schema as an object if the project's hook gives one; a string from it is a setting."""
        from dataclasses import replace

        settings, given = self.needed(), self.config.hook.pytest_dbclone_schema(config=self.config)
        if isinstance(given, str):
            sources = {**settings.sources, "schema": "the hook pytest_dbclone_schema"}
            return replace(settings, schema=(given,), sources=sources), None
        return settings, given

    def progress(self) -> Progress:
        """Return what tells a person what a long build is doing, to be used in a `with` block."""
        from .progress import Progress

        return Progress(self._write)

    def _write(self, line: str) -> None:
        manager = self.config.pluginmanager
        reporter, capture = manager.get_plugin("terminalreporter"), manager.get_plugin("capturemanager")
        if reporter is not None and capture is not None:
            with capture.global_and_fixture_disabled():  # a fixture's output is captured, this is for whoever waits
                reporter.ensure_newline()
                reporter.write_line(line)
