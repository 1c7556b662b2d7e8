"""Tests of what needs no server; a test that does belongs to integration or above."""

from __future__ import annotations

import pytest


@pytest.fixture
def server() -> None:
    pytest.fail("a unit test has no server: move it to tests/integration, or use nothing of one")
