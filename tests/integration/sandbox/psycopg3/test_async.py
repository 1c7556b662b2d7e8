"""Asynchronous connections into the sandbox: the same programs give the same results there and for
real."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ...twice import arefused, table, twice

pytestmark = pytest.mark.clone_of(make=table)

Program = Callable[[Isolation], Awaitable[Any]]
INSERT = "INSERT INTO t VALUES (%s)"


@pytest.fixture
def both_async(clone: Clone) -> Callable[[Program], Any]:
    """Run a coroutine function twice, each time in an event loop of its own."""
    return lambda program: twice(clone, lambda db: asyncio.run(_bounded(program(db))))


async def _bounded(what: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(what, 60)


async def values(connection: psycopg.AsyncConnection[Any]) -> list[int]:
    cursor = await connection.execute("SELECT a FROM t ORDER BY a")
    return [a for (a,) in await cursor.fetchall()]


def test_commit_rollback_and_close(both_async: Callable[[Program], Any]) -> None:
    async def program(db: Isolation) -> Any:
        first, second = await db.aconnect(), await db.aconnect(autocommit=True)
        seen: list[Any] = []
        await first.execute(INSERT, [1])
        seen.append(first.info.transaction_status)
        await first.commit()
        await first.execute(INSERT, [2])
        await first.rollback()
        seen += [
            first.info.transaction_status,
            await values(second),
            db.execute("SELECT count(*) FROM t").fetchone(),
        ]
        await first.execute(INSERT, [3])
        await first.close()
        seen += [first.closed, await arefused(first.execute("SELECT 1")), await values(second)]
        async with await db.aconnect() as third:
            await third.execute(INSERT, [4])
        return [*seen, third.closed, await values(second)]

    assert both_async(program)[1:3] == [TransactionStatus.IDLE, [1]]


def test_transaction_blocks_nested_named_forced_and_failing(
    both_async: Callable[[Program], Any],
) -> None:
    async def program(db: Isolation) -> Any:
        connection = await db.aconnect(autocommit=True)
        async with connection.transaction() as outer:
            await connection.execute(INSERT, [1])
            with contextlib.suppress(psycopg.errors.UniqueViolation):
                async with connection.transaction("named"):
                    await connection.execute(INSERT, [2])
                    await connection.execute(INSERT, [1])
            async with connection.transaction(force_rollback=True):
                await connection.execute(INSERT, [3])
            async with connection.transaction() as inner:
                await connection.execute(INSERT, [4])
                raise psycopg.Rollback(inner)
            seen: list[Any] = [
                outer.status,
                inner.status,
                inner.savepoint_name,
                connection.info.transaction_status,
            ]
            with pytest.raises(psycopg.ProgrammingError):
                await connection.commit()
        with contextlib.suppress(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute(INSERT, [5])
                raise ZeroDivisionError
        return [*seen, outer.status, await values(connection)]

    assert both_async(program)[-1] == [1]


def test_errors_outside_and_inside_a_block(both_async: Callable[[Program], Any]) -> None:
    """D3."""

    async def program(db: Isolation) -> Any:
        alone, inside = await db.aconnect(autocommit=True), await db.aconnect()
        await alone.execute(INSERT, [1])
        seen: list[Any] = [await arefused(alone.execute(INSERT, [1])) for _ in range(2)]
        seen += [
            alone.info.transaction_status,
            await arefused(inside.execute(INSERT, [1])),
            inside.info.transaction_status,
        ]
        seen += [
            await values(alone),
            await arefused(inside.execute("SELECT 1")),
            alone.info.transaction_status,
        ]
        await alone.execute(INSERT, [2])
        seen += [await arefused(inside.execute("SAVEPOINT a")), inside.info.transaction_status]
        await inside.commit()
        return [*seen, inside.info.transaction_status, await values(inside)]

    assert both_async(program)[-1] == [1, 2]


def test_every_way_to_send_a_statement(both_async: Callable[[Program], Any]) -> None:
    async def program(db: Isolation) -> Any:
        connection = await db.aconnect(autocommit=True)
        seen: list[Any] = []
        async with connection.cursor() as cursor:
            await cursor.executemany(INSERT, [(1,), (2,)])
            seen.append(await arefused(cursor.executemany(INSERT, [(3,), (1,)])))
            async with cursor.copy("COPY t (a) FROM STDIN") as copy:
                await copy.write_row([4])
            for number in range(8):
                await cursor.execute("SELECT %s::int", [number], prepare=True)
            seen.append([row async for row in cursor.stream("SELECT a FROM t ORDER BY a")])
            await cursor.execute(
                "BEGIN; INSERT INTO t VALUES (5); ROLLBACK; INSERT INTO t VALUES (6)"
            )
        async with connection.pipeline():
            cursors = [
                await connection.execute("INSERT INTO t VALUES (%s) RETURNING a", [value])
                for value in (7, 8)
            ]
        seen += [await cursor.fetchone() for cursor in cursors]
        async with connection.transaction(), connection.cursor("named") as named:
            await named.execute("SELECT a FROM t ORDER BY a")
            seen += [await named.fetchmany(2), [row async for row in named]]
        await connection.set_autocommit(False)
        await connection.execute(INSERT, [9])
        await connection.rollback()
        return [*seen, await values(connection)]

    assert both_async(program)[-1] == [1, 2, 4, 6, 7, 8]


def test_tasks_that_work_at_the_same_time(both_async: Callable[[Program], Any]) -> None:
    """D14."""

    async def program(db: Isolation) -> Any:
        async def work(number: int) -> int:
            connection = await db.aconnect(autocommit=True)
            for step in range(5):
                await connection.execute(INSERT, [number * 10 + step])
            row = await (
                await connection.execute("SELECT count(*) FROM t WHERE a / 10 = %s", [number])
            ).fetchone()
            assert row is not None
            return int(row[0])

        return await asyncio.gather(*map(work, range(8))), db.execute(
            "SELECT count(*) FROM t"
        ).fetchone()

    assert both_async(program) == ([5] * 8, (40,))


def test_a_statement_that_is_cancelled_harms_nobody(both_async: Callable[[Program], Any]) -> None:
    async def program(db: Isolation) -> Any:
        connection, other = await db.aconnect(autocommit=True), await db.aconnect(autocommit=True)
        await other.execute(INSERT, [1])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(connection.execute("SELECT pg_sleep(50)"), 0.05)
        await connection.execute(INSERT, [2])
        return await values(other)

    assert both_async(program) == [1, 2]


def test_the_test_looks_while_a_task_is_in_the_middle_of_a_statement(
    both_async: Callable[[Program], Any],
) -> None:
    """The thread that the event loop needs waits for the session: it finishes the task's statement
    itself."""

    async def program(db: Isolation) -> Any:
        connection = await db.aconnect(autocommit=True)
        await connection.execute(INSERT, [1])
        for _ in range(3):
            tasks = [
                asyncio.create_task(connection.execute("SELECT a, pg_sleep(0.02)::text FROM t"))
                for _ in range(2)
            ]
            await asyncio.sleep(0.01)
            seen = db.execute("SELECT a FROM t").fetchall()
            db.execute("UPDATE t SET a = a + 1")
            found = [await (await task).fetchall() for task in tasks]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await asyncio.gather(
                connection.execute("SELECT 1 / 0"), asyncio.to_thread(db.execute, "SELECT 1")
            )
        return seen, [len(rows) for rows in found], await values(connection)

    assert both_async(program) == ([(3,)], [1, 1], [4])


def test_threads_and_tasks_take_turns(both_async: Callable[[Program], Any]) -> None:
    async def program(db: Isolation) -> Any:
        def work(start: int) -> int:
            with db.connect(autocommit=True) as connection:
                for value in range(start, start + 50):
                    connection.execute(INSERT, [value])
                return len(
                    connection.execute(
                        "SELECT a FROM t WHERE a BETWEEN %s AND %s", [start, start + 49]
                    ).fetchall()
                )

        async def task(start: int) -> int:
            connection = await db.aconnect(autocommit=True)
            for value in range(start, start + 50):
                await connection.execute(INSERT, [value])
            cursor = await connection.execute(
                "SELECT a FROM t WHERE a BETWEEN %s AND %s", [start, start + 49]
            )
            return len(await cursor.fetchall())

        counts = await asyncio.gather(
            task(0), asyncio.to_thread(work, 100), task(200), asyncio.to_thread(work, 300)
        )
        return counts, db.execute("SELECT count(*) FROM t").fetchone()

    assert both_async(program) == ([50, 50, 50, 50], (200,))


def test_a_connection_kept_for_later_fails_rather_than_writing_for_real(clone: Clone) -> None:
    kept: list[psycopg.AsyncConnection[Any]] = []

    async def program(db: Isolation) -> None:
        kept.append(await db.aconnect(autocommit=True))

    for reset in ("rollback", "truncate"):
        with clone.isolated(reset, "test") as db:
            asyncio.run(_bounded(program(db)))
        with pytest.raises(psycopg.OperationalError, match="closed"):
            asyncio.run(_bounded(kept[-1].execute("INSERT INTO t VALUES (1)")))


def test_an_event_loop_in_another_thread(both_async: Callable[[Program], Any]) -> None:
    """D14: What a live asynchronous server is, while the test itself is synchronous."""

    async def program(db: Isolation) -> Any:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def request(value: int) -> int:
            connection = await db.aconnect()
            async with connection:
                await connection.execute(INSERT, [value])
            return value

        def run(value: int) -> int:
            return asyncio.run_coroutine_threadsafe(request(value), loop).result(30)

        try:
            seen = []
            for value in range(5):
                run(value)
                seen.append(db.execute("SELECT count(*) FROM t").fetchone())
            return seen
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)
            loop.close()

    assert both_async(program) == [(1,), (2,), (3,), (4,), (5,)]
