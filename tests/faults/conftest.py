"""What tests of faults share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbclone.server.server import Server

from ..conftest import Project
from .aftermath import Foreign, foreign, reference, write
from .nursery import Nursery, Start, children


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The process from which all children of this test process come."""
    with contextlib.closing(Nursery()) as found:
        yield found


@pytest.fixture(scope="session")
def truth(server: Server) -> dict[str, str]:
    """The fingerprint of what the schema of `aftermath` makes."""
    return reference(server)


@pytest.fixture(scope="session")
def others(server: Server) -> Iterator[Foreign]:
    """What is not ours on this test process's server."""
    with foreign(server) as found:
        yield found


@pytest.fixture
def shop_project(project: Project) -> Project:
    write(project)
    return project


@pytest.fixture
def start(
    nursery: Nursery, project: Project, project_server: Server, options: dict[str, str]
) -> Iterator[Start]:
    """What starts a child process that works on the same server, and ends it with the test."""
    with children(nursery, project.folder, options) as starter:
        yield starter
