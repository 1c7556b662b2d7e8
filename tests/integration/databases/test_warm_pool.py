"""The warm pool: a swap gives an untouched copy under the old name, nobody else gets it, and
nothing stays behind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.databases import copying, warm_pool
from dbclone.databases.naming import Mark
from dbclone.databases.prune import prune
from dbclone.errors import NotOwned, TemplateError
from dbclone.server.dsn import Dsn
from dbclone.server.locks import lock_key
from dbclone.server.server import Server

from ...conftest import Project
from ...faults.stops import ended, until
from ...oracle import fingerprint
from ...warm_pool import Hire, Worker, hiring

WRITES = "INSERT INTO item (name) VALUES ('mine'); DROP SCHEMA IF EXISTS other; CREATE SCHEMA other; CREATE TABLE other.mine ()"


@pytest.fixture
def hire(project: Project, options: dict[str, str]) -> Iterator[Hire]:
    with hiring(project, options) as starter:
        yield starter


def test_a_swap_gives_an_untouched_copy_of_the_template_under_the_old_name(hire: Hire) -> None:
    worker = hire()
    oids = [worker.swap()]
    whole = fingerprint(worker.url)
    for _ in range(4):
        worker.execute(WRITES)
        assert fingerprint(worker.url) != whole
        oids.append(worker.swap())
        assert fingerprint(worker.url) == whole
        assert worker.execute("SHOW work_mem") == [("7MB",)]
    assert len(set(oids)) == 5


def test_each_swap_gives_the_mark_it_was_asked_for(hire: Hire) -> None:
    """Also if the warm clone was made with that of the swap before."""
    worker = hire()
    for used in (1.0, 2.0, 2.0):
        worker.mark = replace(worker.mark, used=used)
        worker.swap()
        until(lambda: worker.ready == 1)


def test_fifty_swaps_leave_nothing_behind(
    project: Project, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S26: and on the way there are never more databases than the limit allows, nor one that is not
    leased."""
    worker, real, most = hire(limit=2), copying.copy, []

    def copy(server: Server, *arguments: Any, **named: Any) -> Mark:
        made = real(server, *arguments, **named)
        there = set(project.clones(server)) - {worker.name}
        assert {lock_key(name) for name in there} <= server.leases.held()
        most.append((len(there), worker.ready + 1))
        return made

    monkeypatch.setattr(warm_pool, "copy", copy)
    oids = set()
    for _ in range(50):
        oids.add(worker.swap())
        worker.execute("DELETE FROM item")
    assert len(oids) == 50
    worker.pool.close()
    assert project.clones(worker.server) == [worker.name]
    assert max(most) <= (4, 2)
    assert worker.server.leases.held() == {
        lock_key(worker.name),
        lock_key(worker.template.name),
    } | _unrelated(worker)
    until(lambda: not worker.pids())
    worker.pool.close()


def _unrelated(worker: Worker) -> set[int]:
    """Return the keys of locks on this server that are not of this test's project."""
    rows = worker.server.fetch(
        "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype ="
        " 'advisory' AND pid <> pg_backend_pid()"
    )
    users = {0x6462_636C_6F6E_6501}  # of the private server
    return {key for (key,) in rows} | users


def test_one_more_is_kept_ready_each_time_a_swap_had_to_wait_and_fewer_when_none_is_wanted(
    project: Project, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, real, held = hire(limit=2), copying.copy, False

    def copy(*arguments: Any, **named: Any) -> Mark:
        until(lambda: worker.pool._wanted or worker.pool._closing or not held)
        return real(*arguments, **named)

    monkeypatch.setattr(warm_pool, "copy", copy)
    worker.swap()
    for expected in (1, 2, 2):
        held = False

        def ready(expected: int = expected) -> bool:
            return worker.ready == expected and len(project.clones(worker.server)) == 1 + expected

        until(ready)
        held = True
        for _ in range(expected + 1):
            worker.swap()
    assert worker.pool._target == 2
    held = False
    until(lambda: worker.ready == 2)
    monkeypatch.setattr(warm_pool, "IDLE", 0.001)
    worker.swap()
    until(lambda: project.clones(worker.server) == [worker.name])
    worker.swap()


def test_sessions_in_the_old_database_are_ended_and_prepared_transactions_rolled_back(
    project: Project, hire: Hire
) -> None:
    """B11: a prepared transaction outlives its session, and a rename would wait 5 s for it, and
    then fail."""
    worker = hire()
    worker.swap()
    for _ in range(2):
        idle, busy = (psycopg.connect(worker.url) for _ in range(2))
        with psycopg.connect(worker.url) as connection:
            connection.execute("INSERT INTO item (name) VALUES ('prepared')")
            connection.execute(f"PREPARE TRANSACTION '{worker.name}'".encode())
        busy.execute("SELECT FROM item")
        before = worker.oid
        assert worker.swap() != before
        for connection in (idle, busy):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            connection.close()
        assert worker.execute("SELECT count(*) FROM item") == [(100,)]
    worker.pool.close()
    assert project.clones(worker.server) == [worker.name]


def test_somebody_who_comes_in_at_the_last_moment_is_ended_too(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, real, intruders = hire(), copying._comes_free, []
    worker.swap()

    def comes_free(server: Server, question: bytes) -> bool:
        free = real(server, question)
        if free:
            intruders.append(psycopg.connect(worker.url))
        return free

    monkeypatch.setattr(copying, "_comes_free", comes_free)
    before = worker.oid
    assert worker.swap() != before
    for intruder in intruders:
        with pytest.raises(psycopg.OperationalError):
            intruder.execute("SELECT 1")
        intruder.close()
    assert len(intruders) == 1


def test_a_session_that_may_not_be_ended_is_named_and_the_database_stays_as_it_was(
    server: Server, role: Dsn, hire: Hire
) -> None:
    """B10."""
    worker = hire(url=role.url)
    worker.swap()
    worker.execute("DELETE FROM item")
    before = worker.oid
    with psycopg.connect(
        server.database(worker.name).url, application_name="a superuser's tool"
    ) as held:
        for _ in range(2):
            with pytest.raises(psycopg.errors.ObjectInUse, match="a superuser's tool"):
                worker.pool.swap(worker.name, worker.mark)
            assert worker.oid == before
            assert worker.execute("SELECT count(*) FROM item") == [(0,)]
        pid = held.info.backend_pid
    ended(worker.server, pid)
    assert worker.swap() != before


@pytest.mark.parametrize("busy", [False, True])
def test_what_lost_its_mark_is_put_aside_and_not_dropped(
    busy: bool, project: Project, hire: Hire, caplog: pytest.LogCaptureFixture
) -> None:
    """A test wrote COMMENT ON DATABASE: that is no licence to drop, nor does it fail the tests
    after it."""
    worker = hire()
    before = worker.swap()
    name = sql.Identifier(worker.name)
    held = psycopg.connect(worker.url, autocommit=True)
    held.execute(sql.SQL("COMMENT ON DATABASE {} IS 'keep'").format(name))
    if not busy:
        pid = held.info.backend_pid
        held.close()
        ended(worker.server, pid)
    assert worker.swap() != before
    held.close()
    worker.pool.close()
    (left,) = set(project.clones(worker.server)) - {worker.name}
    assert "its comment is not dbclone's" in caplog.text
    worker.server.connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(left)))


def test_a_database_of_that_name_that_is_not_ours_is_left_alone(hire: Hire) -> None:
    worker = hire()
    name = sql.Identifier(worker.name)
    worker.server.connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    with pytest.raises(NotOwned, match="left alone"):
        worker.swap()
    worker.pool.close()
    worker.server.connection.execute(sql.SQL("DROP DATABASE {}").format(name))


def test_a_prune_of_everything_and_a_claim_take_nothing_from_a_pool_that_lives(
    project: Project, hire: Hire
) -> None:
    worker, other = hire(), hire(run="other")
    worker.swap()
    until(lambda: worker.ready == 1)
    assert other.template.name == worker.template.name
    assert not copying.claim_warm_clone(
        other.server, other.template.database, other.name, other.mark
    )
    before = project.clones(other.server)
    prune(other.server, other.template.name, everything=True)
    assert project.clones(other.server) == before
    assert len(before) == 2


def test_a_fork_s_child_leaves_the_pool_to_its_parent(hire: Hire) -> None:
    worker = hire()
    worker.swap()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        worker.pool.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    before = worker.oid
    assert worker.swap() != before


def test_a_closed_pool_says_so(hire: Hire) -> None:
    worker = hire()
    worker.pool.close()
    with pytest.raises(TemplateError, match="is closed"):
        worker.swap()
