"""What tests of faults share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dbclone.server.server import Server
from dbclone.settings import load

from ..conftest import Project
from .aftermath import Foreign, foreign, reference, write
from .nursery import Nursery, Start, children


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
def shop(project: Project, options: dict[str, str]) -> Iterator[Server]:
    """The server as a project sees it whose schema is one SQL file."""
    write(project)
    with Server.open(load(project.folder, options, {})) as opened:
        yield opened


@pytest.fixture
def start(
    nursery: Nursery, project: Project, shop: Server, options: dict[str, str]
) -> Iterator[Start]:
    """What starts a child process that works on the same server, and ends it with the test."""
    with children(nursery, project.folder, options) as starter:
        yield starter
