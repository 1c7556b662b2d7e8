"""Tasks and threads that need the one session at the same time: they wait, and a deadlock is an
error in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from dbclone import SandboxLimit
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation

from ...twice import TIMEOUT, table
from .test_async import INSERT, Program, _bounded, both_async

pytestmark = pytest.mark.clone_of(make=table)

__all__ = ["both_async"]  # fixtures


def sandboxed(clone: Clone, program: Program) -> float:
    """Run a program inside a rollback, and return how many seconds it took."""
    started = time.monotonic()
    with clone.isolated("rollback", "test") as db:
        asyncio.run(_bounded(program(db)))
    return time.monotonic() - started


@pytest.mark.parametrize("who", ["this task", "another task", "a thread", "this thread"])
@pytest.mark.parametrize("held", ["pipeline", "copy", "stream"])
def test_who_holds_the_session_too_long_is_an_error_in_time(
    clone: Clone, held: str, who: str
) -> None:
    """Whatever waits, the event loop goes on, and afterwards the session serves all."""

    async def program(db: Isolation) -> None:
        holder, other, beats = (
            await db.aconnect(autocommit=True),
            await db.aconnect(autocommit=True),
            0,
        )

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        async def use() -> None:
            if who == "this thread":
                db.execute("SELECT 1")
            elif who == "a thread":
                await asyncio.to_thread(db.execute, "SELECT 1")
            else:
                await other.execute("SELECT 1")

        async def wait() -> None:
            with pytest.raises(SandboxLimit, match="a connection waits for") as caught:
                await use()
            assert f"lock_timeout is {TIMEOUT:g} s" in caught.value.detail
            assert 'reset="truncate"' in caught.value.hint

        async def ask() -> None:
            await (asyncio.create_task(wait()) if who == "another task" else wait())

        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)
        if held == "pipeline":
            async with holder.pipeline():
                await holder.execute("SELECT 1")
                await ask()
        elif held == "copy":
            async with holder.cursor().copy("COPY t (a) FROM STDIN") as copy:
                await copy.write_row([1])
                await ask()
        else:
            async for _ in holder.cursor().stream("SELECT generate_series(1, 3)"):
                await ask()
                break
        if who in ("another task", "a thread"):
            assert beats > 5
        beating.cancel()
        await other.execute(INSERT, [2])
        assert db.execute("SELECT count(*) FROM t").fetchone() == (2 if held == "copy" else 1,)

    assert sandboxed(clone, program) < 30


def test_a_task_waits_for_the_transaction_of_another(both_async: Callable[[Program], Any]) -> None:
    async def program(db: Isolation) -> Any:
        first, second = await db.aconnect(), await db.aconnect()
        await first.execute(INSERT, [1])

        async def beside() -> None:
            await second.execute(INSERT, [2])
            await second.commit()

        task = asyncio.create_task(beside())
        await asyncio.sleep(0)
        await first.execute(INSERT, [3])
        await first.commit()
        await task
        return sorted(db.execute("SELECT a FROM t").fetchall())

    assert both_async(program) == [(1,), (2,), (3,)]


def test_a_limit_in_a_block_is_not_logged_away(clone: Clone) -> None:
    """psycopg logs what goes wrong when a block is rolled back, and goes on."""

    async def program(db: Isolation) -> None:
        connection = await db.aconnect(autocommit=True)

        async def fail() -> None:
            async with connection.transaction():
                await connection.execute(INSERT, [1])
                db.execute("INSERT INTO t VALUES (2)")

        with pytest.raises(SandboxLimit, match="another connection has written"):
            await fail()
        assert db.execute("SELECT count(*) FROM t").fetchall() == [(0,)]

    sandboxed(clone, program)
