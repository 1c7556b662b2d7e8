"""Writes down, as JSON, how long the phases of each test took, as pytest itself times them, and
each test from start to end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

_tests: dict[str, dict[str, Any]] = {}


def pytest_runtest_logstart(nodeid: str) -> None:
    _tests[nodeid] = {"name": nodeid, "whole": -time.perf_counter()}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A report's duration is that of the whole hook call: plugins' wrappers and fixtures are in it."""
    test = _tests[report.nodeid]
    test[report.when or ""] = report.duration
    if not report.passed:
        test["failed"] = report.when


def pytest_runtest_logfinish(nodeid: str) -> None:
    _tests[nodeid]["whole"] += time.perf_counter()


def pytest_unconfigure() -> None:
    Path(os.environ["PEERS_RESULTS"]).write_text(json.dumps(list(_tests.values())))
