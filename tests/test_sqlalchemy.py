"""SQLAlchemy as teams use it: the same program sandboxed and for real on a fresh clone, with the same results, and nothing left."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import AssertionPool, NullPool, SingletonThreadPool, StaticPool

from dbclone import adapters
from dbclone.clone import Clone
from dbclone.server import Server
from dbclone.settings import Settings
from dbclone.template import Template

from .alchemy import PROGRAMS, Base, Seen, core, orm, scoped

# A connection that is checked out during dispose() is closed by nobody, in production too, and psycopg warns of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def clone(server: Server, settings: Settings) -> Iterator[Clone]:
    own = replace(settings, name=f"alchemy{uuid.uuid4().hex[:6]}")
    server.settings, before = own, server.settings
    parts, handle = adapters.load(own, Base.metadata)
    with Template.ensure(server, parts, handle).clone("main") as made:
        yield made
    server.settings = before


def engine(**options: Any) -> Engine:
    return create_engine("postgresql+psycopg://nobody:secret@nowhere.example:1/elsewhere", **options)


@pytest.fixture
def bind(clone: Clone) -> Iterator[Callable[[Any], Any]]:
    """A function that binds a handle to the clone for the test; afterwards the clone is as empty as before."""
    with pytest.MonkeyPatch.context() as patch:
        stack = contextlib.ExitStack()

        def bind(handle: Any) -> Any:
            stack.enter_context(adapters.bound(handle, clone.url))
            patch.setattr(clone, "handle", handle)
            return handle

        with stack:
            yield bind
    with clone.connect() as outside:
        assert outside.execute("SELECT count(*) FROM person").fetchone() == (0,)


def run(program: Callable[[Engine], Seen], found: Engine, clone: Clone, reset: str) -> Seen:
    with clone.isolated(reset, "test"):
        return program(found)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_an_application_sees_the_same_sandboxed_and_for_real(
    bind: Callable[[Any], Any], clone: Clone, program: Callable[[Engine], Seen]
) -> None:
    found = bind(engine())
    real = run(program, found, clone, "clone")
    assert real[-1] or program.__name__ in ("failed_until_rolled_back", "deferred")
    for reset in ("rollback", "truncate", "rollback"):
        assert run(program, found, clone, reset) == real, reset


@pytest.mark.parametrize(
    "arguments",
    [
        {"poolclass": NullPool},
        {"poolclass": StaticPool},
        {"poolclass": AssertionPool},
        {"poolclass": SingletonThreadPool},
        {"pool_pre_ping": True, "pool_size": 1},
        {"pool_reset_on_return": None},
        {"pool_recycle": 0, "pool_use_lifo": True},
        {"isolation_level": "AUTOCOMMIT"},
    ],
    ids=str,
)
def test_whatever_the_pool(bind: Callable[[Any], Any], clone: Clone, arguments: dict[str, Any]) -> None:
    found = bind(engine(**arguments))
    for program in (scoped,) if "isolation_level" in arguments else (orm, core):
        real = run(program, found, clone, "clone")
        for reset in ("rollback", "truncate", "rollback"):
            assert run(program, found, clone, reset) == real, reset
