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
        self._progress: Progress | None = None

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

    def progress(self, text: str) -> None:
        """Tell a person what a long build is doing."""
        if self._progress is None:
            from .progress import Progress

            self._progress = Progress(self._write)
        self._progress(text)

    def _write(self, line: str) -> None:
        if (reporter := self.config.pluginmanager.get_plugin("terminalreporter")) is not None:
            reporter.ensure_newline()
            reporter.write_line(line)
