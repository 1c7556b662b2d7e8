"""A clone of the programs' tables, and handles bound to it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template

from ..developer import application_url
from .programs import Base

Bind = Callable[[Any], Any]


@pytest.fixture(scope="module")
def clone(server: Server, settings: Settings) -> Iterator[Clone]:
    own = replace(settings, name=f"alchemy{uuid.uuid4().hex[:6]}")
    server.settings, before = own, server.settings
    parts, handle = handles.load(own, Base.metadata)
    with Template.ensure(server, parts, handle).clone("main") as made:
        yield made
    server.settings = before


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
