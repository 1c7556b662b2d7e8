"""What tests of faults share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dbclone.server import Server

from .aftermath import Foreign, foreign, reference
from .nursery import Nursery


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
