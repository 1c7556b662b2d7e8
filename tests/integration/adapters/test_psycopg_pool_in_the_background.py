"""What a pool of psycopg_pool does in the background while a sandbox begins or ends belongs to one
side of it, and is not lost."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import freezegun
import psycopg
import psycopg_pool
import pytest

from dbclone.clone.clone import Clone
from dbclone.sandbox.psycopg3.connection import Sandboxed

from ..twice import table
from .test_psycopg_pool import ELSEWHERE, INSERT, handle

pytestmark = pytest.mark.clone_of(make=table)


class Slow(psycopg.Connection[Any]):
    """Slow enough to connect that a pool is still at it when a test begins."""

    @classmethod
    def connect(cls, *arguments: Any, **options: Any) -> Any:
        connection = super().connect(*arguments, **options)
        time.sleep(0.1)
        return connection


class SlowAsync(psycopg.AsyncConnection[Any]):
    @classmethod
    async def connect(cls, *arguments: Any, **options: Any) -> Any:
        connection = await super().connect(*arguments, **options)
        await asyncio.sleep(0.1)
        return connection


class Connector:
    """A `configure` that keeps a pool's worker at work on a connection into a sandbox until it may
    go on."""

    def __init__(self) -> None:
        self.reached, self.open, self.waited = threading.Event(), threading.Event(), list[bool]()

    def __call__(self, connection: Any) -> None:
        if isinstance(connection, Sandboxed):
            self.reached.set()
            self.waited.append(self.open.wait(30))
        connection.execute("SELECT 1")
        connection.commit()


def names(found: list[Any]) -> set[tuple[bool, str]]:
    """Return of what kind the connections are."""
    return {(isinstance(connection, Sandboxed), connection.info.dbname) for connection in found}


def require_all(clone: Clone, pool: Any, number: int) -> None:
    """In a sandbox and for real, the pool has so many connections of the right kind, and no more."""
    for reset in ("rollback", "truncate"):
        with clone.isolated(reset, "test"):
            found = [pool.getconn(10) for _ in range(number)]
            found[0].execute(INSERT, [1])
            found[0].commit()
            assert names(found) == {(reset == "rollback", clone.name)}
            with pytest.raises(psycopg_pool.PoolTimeout):
                pool.getconn(0.2)
            for connection in found:
                pool.putconn(connection)


def test_a_pool_opened_right_before_a_test_has_its_connections_after_it(clone: Clone) -> None:
    options: dict[str, Any] = {
        "min_size": 3,
        "max_size": 3,
        "num_workers": 1,
        "connection_class": Slow,
    }
    with handle(clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=False, **options)) as pool:
        pool.open()
        with clone.isolated("rollback", "test") as db:
            found = [pool.getconn(10) for _ in range(3)]
            found[0].execute(INSERT, [1])
            found[0].commit()
            assert db.execute("SELECT a FROM t").fetchone() == (1,)
            assert {isinstance(connection, Sandboxed) for connection in found} == {True}
            for connection in found:
                pool.putconn(connection)
        require_all(clone, pool, 3)


def test_an_asynchronous_pool_opened_right_before_a_test_has_its_connections_after_it(
    clone: Clone,
) -> None:
    options: dict[str, Any] = {
        "min_size": 3,
        "max_size": 3,
        "num_workers": 1,
        "connection_class": SlowAsync,
    }
    pool = psycopg_pool.AsyncConnectionPool(ELSEWHERE, open=False, **options)

    async def work() -> set[tuple[bool, str]]:
        found = [await pool.getconn(10) for _ in range(3)]
        await found[0].execute(INSERT, [1])
        kinds = names(found)
        for connection in found:
            await pool.putconn(connection)
        await asyncio.sleep(0.3)  # until what the test's pool wants is there
        return kinds

    def run(what: Any) -> Any:
        return loop.run_until_complete(asyncio.wait_for(what, 60))

    loop = asyncio.new_event_loop()
    with handle(clone, pool):
        run(pool.open())
        for reset in ("rollback", "truncate", "rollback"):
            with clone.isolated(reset, "test"):
                assert run(work()) == {(reset == "rollback", clone.name)}
        run(pool.close())
    loop.close()


def test_a_connection_into_a_sandbox_that_comes_too_late_is_not_handed_out(clone: Clone) -> None:
    """`configure` is still at work on it when the test is over. A clock that the test has stopped
    does not make its end wait."""
    gate = Connector()
    options: dict[str, Any] = {"min_size": 2, "max_size": 2, "num_workers": 1, "configure": gate}
    with handle(clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=True, **options)) as pool:
        with freezegun.freeze_time("2012-03-04"), clone.isolated("rollback", "test"):
            assert gate.reached.wait(30)
        gate.open.set()
        require_all(clone, pool, 2)
    assert gate.waited
    assert all(gate.waited)


def test_a_real_connection_that_comes_back_while_a_test_ends_is_not_lost(clone: Clone) -> None:
    """A pool with `reset` takes a connection back in the background, here when its worker has time:
    after the test."""
    gate, resets = Connector(), list[Any]()
    options: dict[str, Any] = {
        "min_size": 1,
        "max_size": 1,
        "num_workers": 1,
        "configure": gate,
        "reset": resets.append,
    }
    with handle(clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=True, **options)) as pool:
        held = pool.getconn(10)
        process = held.info.backend_pid
        with clone.isolated("rollback", "test"):
            assert gate.reached.wait(30)
            pool.putconn(held)
        gate.open.set()
        with pool.connection(10) as connection:
            assert connection.info.backend_pid == process
            assert resets == [connection]
        require_all(clone, pool, 1)
