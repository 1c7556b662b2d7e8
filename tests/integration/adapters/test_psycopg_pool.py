"""Pools of psycopg_pool as the application's handle: the same program gives the same results inside
a rollback and for real."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest

from dbclone import SandboxLimit, SettingsError
from dbclone.adapters import handles
from dbclone.adapters.handles import bound_to
from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation
from dbclone.settings import Settings

from ...conftest import Project
from ..twice import refused, table, twice

pytestmark = pytest.mark.clone_of(make=table)

ELSEWHERE = "host=/nowhere port=1 dbname=production user=nobody application_name=shop"
INSERT = "INSERT INTO t VALUES (%s)"
Pool = psycopg_pool.ConnectionPool[Any]


@contextlib.contextmanager
def handle(clone: Clone, pool: Any) -> Iterator[Any]:
    """Make `pool` the application's handle for the block."""
    with bound_to(pool, clone.url):
        clone.handle = pool
        try:
            yield pool
        finally:
            clone.handle = None


def count(pool: Any) -> int:
    with pool.connection() as connection:
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


class Named(psycopg.Connection[Any]):
    """A connection class of the application's own."""

    @classmethod
    def connect(cls, *arguments: Any, **options: Any) -> Any:
        connection = super().connect(*arguments, **options)
        connection.name = "mine"  # type: ignore[attr-defined]
        return connection

    def greet(self) -> str:
        return f"{self.name} {self.execute('SELECT 1').fetchone()}"  # type: ignore[attr-defined]


def test_every_way_to_use_a_pool(clone: Clone) -> None:
    seen: list[Any] = []

    def program(db: Isolation) -> Any:
        with pool.connection() as connection:
            connection.execute(INSERT, [1])
        with contextlib.suppress(ZeroDivisionError), pool.connection() as connection:
            connection.execute(INSERT, [2])
            raise ZeroDivisionError
        connection = pool.getconn()
        connection.execute(INSERT, [3])
        pool.putconn(connection)  # in a transaction: the pool rolls it back
        with pool.connection() as connection, connection.transaction():
            connection.execute(INSERT, [4])
        with pool.connection() as connection:
            found = [
                refused(lambda: connection.execute(INSERT, [4])),
                connection.info.transaction_status,
            ]
        with pytest.raises(ValueError, match="can't return connection"):
            pool.putconn(db.connection)
        return [
            *found,
            db.execute("SELECT a FROM t ORDER BY a").fetchall(),
            seen.count("reset") > 0,
            isinstance(connection, Named),
        ]

    def configure(connection: Any) -> None:
        seen.append(connection.greet())
        connection.commit()

    def reset(connection: Any) -> None:
        assert isinstance(connection, Named)
        seen.append("reset")

    kinds: dict[str, Any] = {"connection_class": Named, "configure": configure, "reset": reset}
    for options in (
        {"min_size": 1},
        {"min_size": 2, "max_size": 4, **kinds},
        {"kwargs": {"prepare_threshold": 0}, **kinds},
    ):
        with handle(clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=False, **options)) as pool:
            pool.open()
            assert twice(clone, program)[2] == [(1,), (4,)]
    assert "mine (1,)" in seen


@pytest.mark.parametrize("opened", [True, False], ids=["open at import", "opened in the test"])
def test_a_pool_in_threads(clone: Clone, opened: bool) -> None:
    def program(db: Isolation) -> Any:
        if not opened:
            pool.open()
            pool.wait(30)
        with pool.connection() as connection:
            connection.execute(INSERT, [0])

        def job(number: int) -> int:
            with pool.connection() as connection:
                connection.autocommit = True
                connection.execute(INSERT, [number])
                connection.autocommit = False
            return count(pool) > number % 2

        with ThreadPoolExecutor(4) as executor:
            done = list(executor.map(job, range(1, 30)))
        return done, count(pool)

    with handle(
        clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=opened, min_size=2, max_size=3)
    ) as pool:
        if opened:
            assert twice(clone, program)[1] == 30
            return
        with clone.isolated("rollback", "test") as db:
            sandboxed = program(db)
        with clone.isolated("rollback", "again") as db:  # as it was: not opened yet
            assert (pool.closed, program(db)) == (True, sandboxed)
        with clone.isolated("truncate", "test") as db:
            assert program(db) == sandboxed


def test_a_pool_is_exhausted_as_in_production(clone: Clone) -> None:
    def program(db: Isolation) -> Any:
        with pool.connection(), pytest.raises(psycopg_pool.PoolTimeout):
            pool.getconn(timeout=0.05)
        connection = pool.getconn()
        connection.close()
        pool.putconn(connection)
        return count(pool), pool.get_stats()["pool_max"]

    with handle(
        clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=True, min_size=1, max_size=1)
    ) as pool:
        assert twice(clone, program) == (0, 1)


def test_a_pool_that_holds_no_connections(clone: Clone) -> None:
    def program(db: Isolation) -> Any:
        with pool.connection() as connection:
            connection.execute(INSERT, [1])
        return connection.closed, count(pool)

    with handle(clone, psycopg_pool.NullConnectionPool(ELSEWHERE, open=True)) as pool:
        assert twice(clone, program) == (True, 1)


def test_connections_that_waited_aside_are_real_and_come_back(clone: Clone) -> None:
    with handle(
        clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=True, min_size=1, max_size=2)
    ) as pool:
        with pool.connection() as real:
            pid = real.info.backend_pid
            assert (real.info.dbname, real.info.get_parameters()["application_name"]) == (
                clone.name,
                "shop",
            )
        held = pool.getconn()
        with clone.isolated("rollback", "test") as db:
            pool.putconn(held)  # from before the test: it must not be handed out in it
            pids = set()
            for _ in range(3):
                with pool.connection() as connection:
                    pids.add(connection.info.backend_pid)
            assert pids == {db.connection.info.backend_pid}
            kept = pool.getconn()
        with pytest.raises(psycopg.OperationalError, match="closed"):
            kept.execute(INSERT, [1])
        with pool.connection() as real:
            assert real.info.backend_pid == pid


def test_a_pool_survives_that_its_database_is_replaced(clone: Clone) -> None:
    with handle(clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=True, min_size=2)) as pool:
        for reset in ("clone", "rollback", "clone", "truncate"):
            with clone.isolated(reset, "test"):
                with pool.connection() as connection:
                    connection.execute(INSERT, [1])
                assert count(pool) == 1


def test_an_application_that_closes_its_pool(clone: Clone) -> None:
    with handle(clone, psycopg_pool.ConnectionPool(ELSEWHERE, open=True, min_size=1)) as pool:
        with clone.isolated("rollback", "test"):
            pool.close()
            with pytest.raises(psycopg_pool.PoolClosed):
                pool.getconn()
        with clone.isolated("rollback", "next"):
            pool.open()
            assert count(pool) == 0
        assert threading.active_count() < 20


def test_where_a_pool_leads_comes_back(clone: Clone) -> None:
    given = {"dbname": "other", "host": "elsewhere", "autocommit": True}
    for kwargs in (given, lambda: dict(given)):
        pool: Pool = psycopg_pool.ConnectionPool(ELSEWHERE, open=False, min_size=1, kwargs=kwargs)
        with bound_to(pool, clone.url):
            pool.open()
            with pool.connection() as connection:
                assert (connection.info.dbname, connection.autocommit) == (clone.name, True)
        assert (pool.conninfo, pool.kwargs, pool.closed) == (ELSEWHERE, kwargs, True)


def test_the_adapter_of_pools(clone: Clone, settings: Settings, tmp_path: Path) -> None:
    pool: Pool = psycopg_pool.ConnectionPool(ELSEWHERE, open=False)
    adapter = handles.adapter_of(pool)
    assert adapter is not None
    assert adapter.handle(pool) is pool
    with pytest.raises(SettingsError, match="not a schema"):
        adapter.schema(settings, "app:pool", pool)
    assert handles.unsupported_reason(pool) == ""
    pool.connection_class = dict
    assert "'dict'" in handles.unsupported_reason(pool)
    clone.handle = pool
    assert clone.choose("auto") == "truncate"
    with pytest.raises(SandboxLimit, match="pool"), clone.isolated("rollback", "test"):
        pass
    clone.handle = None


def test_a_project_that_binds_a_pool(project: Project) -> None:
    """By setting, with SQL files for a schema; auto chooses rollback, and the pool is open at
    import."""
    project.write(
        app="""
        from psycopg_pool import ConnectionPool
        pool = ConnectionPool("host=/nowhere dbname=production", open=True, min_size=1, timeout=20)
        """,
        test_a="""
        import pytest
        from app import pool
        @pytest.mark.parametrize("number", range(3))
        def test_it(dbclone, number):
            with pool.connection() as connection:
                connection.execute("INSERT INTO t VALUES (1)")
            assert dbclone.execute("SELECT count(*) FROM t").fetchone() == (1,)
            assert dbclone.reset == "rollback"
        @pytest.mark.dbclone(reset="truncate")
        def test_for_real(dbclone):
            with pool.connection() as connection:
                connection.execute("INSERT INTO t VALUES (1)")
            with dbclone.connect() as other:
                assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)
        """,
    )
    (project.folder / "schema.sql").write_text("CREATE TABLE t (a int UNIQUE);")
    project.configure(schema="schema.sql", bind="app:pool")
    done = project.pytest("-q", "-W", "error")
    assert "4 passed" in done.stdout, done.stdout + done.stderr
