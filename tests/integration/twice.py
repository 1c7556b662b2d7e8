"""Programs that run twice, inside a rollback and for real, and must not be able to tell the
difference."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbclone.adapters.handles import bound_to
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation
from dbclone.server.server import Server
from dbclone.settings import Settings

from ..shop import cloned

TIMEOUT = 0.5  # seconds, the lock_timeout of these clones
SCHEMA = "CREATE TABLE t (a int UNIQUE, b text);"

#: Runs a program in a sandbox and for real, and returns what it returned both times.
Both = Callable[[Callable[[Isolation], Any]], Any]
INSERT = "INSERT INTO t VALUES (%s)"


@contextlib.contextmanager
def table(
    server: Server, settings: Settings, folder: Path, handle: Any = None, **changes: Any
) -> Iterator[Clone]:
    """A clone with one table, t (a int UNIQUE, b text), to which `handle` is bound; nothing must be
    left in it in the end."""
    with cloned(server, settings, folder, SCHEMA, **{"lock_timeout": TIMEOUT, **changes}) as made:
        with bound_to(handle, made.url):
            made.handle = handle
            yield made
            made.handle = None
        assert rows(made) == []


def rows(clone: Clone) -> list[Any]:
    """Return what is in the table for everybody, outside any sandbox."""
    with clone.connect() as outside:
        return outside.execute("SELECT a, b FROM t ORDER BY a").fetchall()


def twice(clone: Clone, program: Callable[[Isolation], Any]) -> Any:
    """Run a program inside a rollback and for real, require the same result, and return it."""
    results = []
    for reset in ("rollback", "truncate"):
        with clone.isolated(reset, "test") as isolation:
            results.append(program(isolation))
        assert rows(clone) == []
    assert results[0] == results[1], f"sandboxed: {results[0]}\nfor real:  {results[1]}"
    return results[0]


def run(what: Callable[[], Any]) -> Any:
    """Run something in another thread to its end, and return its result or raise its error."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(what).result(30)


def refused(what: Callable[[], Any]) -> str:
    """Run what must fail in PostgreSQL, and return its SQLSTATE."""
    with pytest.raises(psycopg.Error) as caught:
        what()
    return str(caught.value.sqlstate)


async def arefused(what: Awaitable[Any]) -> str:
    """As `refused`, for what is awaited."""
    with pytest.raises(psycopg.Error) as caught:
        await what
    return str(caught.value.sqlstate)


def values(connection: psycopg.Connection[Any]) -> list[int]:
    """Return what the table has."""
    return [a for (a,) in connection.execute("SELECT a FROM t ORDER BY a").fetchall()]
