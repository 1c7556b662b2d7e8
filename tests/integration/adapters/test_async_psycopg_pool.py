"""Asynchronous pools of psycopg_pool as the application's handle."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus

from dbclone import SettingsError
from dbclone.adapters.handles import bound_to
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ..twice import rows, table
from .test_psycopg_pool import ELSEWHERE, INSERT, handle

pytestmark = pytest.mark.clone_of(make=table)


Async = psycopg_pool.AsyncConnectionPool[Any]


def test_an_asynchronous_pool_that_the_application_opens(clone: Clone) -> None:
    """Each test in an event loop of its own, as in the lifespan of a web application."""
    configured: list[Any] = []

    async def configure(connection: Any) -> None:
        await connection.execute("SELECT 1")
        await connection.commit()
        configured.append(isinstance(connection, psycopg.AsyncConnection))

    async def reset(connection: Any) -> None:
        await connection.execute("SELECT 1")
        await connection.rollback()

    async def program(db: Isolation) -> Any:
        async with pool:
            async with pool.connection() as connection:
                await connection.execute(INSERT, [1])
            with contextlib.suppress(ZeroDivisionError):
                async with pool.connection() as connection:
                    await connection.execute(INSERT, [2])
                    raise ZeroDivisionError

            async def job(number: int) -> Any:
                async with pool.connection() as connection:
                    await connection.set_autocommit(True)
                    await connection.execute(INSERT, [number])
                    await connection.set_autocommit(False)
                    return connection.info.transaction_status

            states = await asyncio.gather(*map(job, range(10, 20)))
            return states, db.execute("SELECT count(*), sum(a) FROM t").fetchone()

    for options in (
        {"min_size": 1},
        {"min_size": 2, "max_size": 3, "configure": configure, "reset": reset},
    ):
        results = []
        for test in ("rollback", "rollback", "truncate"):
            pool: Async = psycopg_pool.AsyncConnectionPool(ELSEWHERE, open=False, **options)
            with handle(clone, pool), clone.isolated(test, "test") as db:
                results.append(asyncio.run(asyncio.wait_for(program(db), 60)))
            assert rows(clone) == []
        assert results == [([TransactionStatus.IDLE] * 10, (11, 146))] * 3
    assert configured
    assert all(configured)


def test_an_asynchronous_pool_of_the_whole_run(clone: Clone) -> None:
    """One pool, one event loop, many tests: it is opened in a session fixture."""
    pool: Async = psycopg_pool.AsyncConnectionPool(ELSEWHERE, open=False, min_size=2)

    async def work() -> Any:
        async with pool.connection() as connection:
            await connection.execute(INSERT, [1])
        async with pool.connection() as connection:
            return await (await connection.execute("SELECT count(*) FROM t")).fetchone()

    def run(what: Any) -> Any:
        return loop.run_until_complete(asyncio.wait_for(what, 60))

    loop = asyncio.new_event_loop()
    with handle(clone, pool):
        run(pool.open(wait=True))
        for reset in ("rollback", "truncate", "rollback", "clone", "rollback"):
            with clone.isolated(reset, "test"):
                assert run(work()) == (1,)
        run(pool.close())
    loop.close()


def test_an_asynchronous_pool_is_as_it_was_after_each_test(clone: Clone) -> None:
    """Left open in the event loop of a test that is over, it is new to the next."""
    pool: Async = psycopg_pool.AsyncConnectionPool(ELSEWHERE, open=False, min_size=1)

    async def work() -> None:
        await pool.open()
        async with pool.connection() as connection:
            await connection.execute(INSERT, [1])

    with handle(clone, pool):
        for _ in range(3):
            with clone.isolated("rollback", "test") as db:
                asyncio.run(asyncio.wait_for(work(), 60))
                assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)
            assert pool.closed


def test_an_asynchronous_pool_that_is_open_in_another_loop_is_refused(clone: Clone) -> None:
    pool: Async = psycopg_pool.AsyncConnectionPool(clone.url, open=False, min_size=0, max_size=1)

    async def program() -> None:
        await pool.open()

    asyncio.run(program())
    with pytest.raises(SettingsError, match="open already"), bound_to(pool, clone.url):
        pass
    assert pool.conninfo == clone.url


def test_an_asynchronous_pool_that_is_open_in_this_loop_is_opened_anew(clone: Clone) -> None:
    async def program() -> None:
        async with psycopg_pool.AsyncConnectionPool(
            ELSEWHERE, open=False, min_size=0, max_size=1
        ) as pool:
            with bound_to(pool, clone.url):
                async with pool.connection() as connection:
                    assert connection.info.dbname == clone.name
            assert pool.conninfo == ELSEWHERE

    asyncio.run(asyncio.wait_for(program(), 60))
