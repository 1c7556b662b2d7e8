"""A clone of the programs' tables, and handles bound to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from dbclone.adapters import handles
from dbclone.clone.clone import Clone

from ....developer import application_url

Bind = Callable[[Any], Any]


@pytest.fixture
def bind(clone: Clone) -> Iterator[Bind]:
    """A function that binds a handle to the clone for the test; afterwards the clone is as empty as
    before."""
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def bind(handle: Any) -> Any:
            stack.enter_context(handles.bound_to(handle, clone.url))
            patch.setattr(clone, "handle", handle)
            return handle

        yield bind
    with clone.connect() as outside:
        assert outside.execute("SELECT count(*) FROM person").fetchone() == (0,)


def engine(**options: Any) -> Engine:
    """An engine that leads to a developer's database before it is bound."""
    return create_engine(application_url(), **options)
