"""The warm pool when something fails or somebody dies: errors come out in the next swap, and what
is left is found by prune."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbclone.adapters import handles
from dbclone.databases import copying, ddl
from dbclone.databases.prune import prune
from dbclone.errors import ServerError, TemplateError
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template

from ..conftest import Project
from ..private import Other, others
from ..warm_pool import Hire, hiring
from .stops import until

# Run in another process, which knows its settings as `options`.
SETUP = """
import threading
from pathlib import Path
from dbclone.databases import ddl as databases
from tests.faults.stops import until
from tests.warm_pool import Worker
worker = Worker(load(Path.cwd(), options, {}), 2, RUN)
there = threading.Event()

def stop(*arguments, **named):
    there.set()
    threading.Event().wait()

def ready():
    worker.swap()
    until(lambda: worker.ready == 1)
    return worker.oid

def stuck(step):
    ready()
    setattr(databases, step, stop)
    worker.swap()
    return there.wait(60)
"""


@pytest.fixture
def hire(project: Project, options: dict[str, str]) -> Iterator[Hire]:
    with hiring(project, options) as starter:
        yield starter


@pytest.fixture
def abroad(
    project: Project, hire: Hire, options: dict[str, str]
) -> Iterator[Callable[[str], Other]]:
    """A function that starts a process with the worker of a run."""
    root = str(Path(__file__).parents[2])
    with others() as start:
        yield lambda run: start(
            options,
            SETUP.replace("RUN", repr(run)),
            cwd=project.folder,
            env={**os.environ, "PYTHONPATH": root},
        )


def gone(server: Server, process: Other) -> None:
    """Wait until a killed process has no session any more."""
    query = "SELECT FROM pg_stat_activity WHERE application_name LIKE %s"
    until(lambda: not server.fetch(query, [f"%:{process.process.pid}"]))


def test_two_runs_never_get_the_same_database_while_others_claim_and_prune(
    project: Project, hire: Hire, abroad: Callable[[str], Other]
) -> None:
    here = hire()
    runs = [abroad("one"), abroad("two")]
    for run in runs:
        run.tell("eval [worker.swap() for _ in range(30)]")
    for _ in range(20):
        assert not copying.claim_warm_clone(
            here.server, here.template.database, here.name, here.mark
        )
        prune(here.server, here.template.name, everything=True)
    one, two = (run.answer() for run in runs)
    assert len({*one, *two}) == 60
    for run in runs:
        run.ask("eval worker.close()")
    assert project.clones(here.server) == []


@pytest.mark.parametrize("step", ["", "comment", "carry_over", "drop"])
def test_what_a_killed_process_leaves_is_never_claimed_and_prune_drops_it(
    step: str, project: Project, hire: Hire, abroad: Callable[[str], Other]
) -> None:
    """B1: killed with one ready, between CREATE DATABASE and its mark, before its settings, before
    what it put aside went."""
    here, other = hire(), abroad("other")
    assert other.ask(f"eval stuck({step!r})" if step else "eval ready()")
    before = project.clones(here.server)
    assert len(before) >= 2
    prune(
        here.server, here.template.name
    )  # which may find what other tests of this process have left
    assert project.clones(here.server) == before
    other.kill()
    gone(here.server, other)
    assert not copying.claim_warm_clone(here.server, here.template.database, here.name, here.mark)
    assert project.clones(here.server) == before
    prune(here.server, here.template.name)
    assert project.clones(here.server) == []


def test_a_template_that_is_gone_is_reported_by_the_swap_that_has_no_warm_clone_left(
    hire: Hire,
) -> None:
    worker = hire()
    worker.swap()
    until(lambda: worker.ready == 1)
    ddl.drop(worker.server, worker.template.database)
    last = worker.swap()
    for _ in range(2):
        with pytest.raises(psycopg.errors.InvalidCatalogName, match=worker.template.name):
            worker.swap()
    assert worker.oid == last
    assert worker.execute("SELECT count(*) FROM item") == [(100,)]
    Template.ensure(worker.server, handles.load(worker.server.settings)[0])
    assert worker.swap() != last


def test_a_full_disk_fails_one_swap_and_not_the_next(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, real, full = hire(), ddl.create, True

    def create(*arguments: Any, **named: Any) -> Any:
        if full:
            raise psycopg.errors.DiskFull("could not extend file")
        return real(*arguments, **named)

    monkeypatch.setattr(ddl, "create", create)
    with pytest.raises(TemplateError, match="no space is left on the private server"):
        worker.swap()
    full = False
    worker.swap()


@pytest.mark.parametrize("pruned", [False, True])
def test_a_pool_whose_session_was_ended_starts_another_and_forgets_nothing(
    pruned: bool, project: Project, hire: Hire
) -> None:
    """Its leases went with the session, so a prune may drop the warm clone that is about to be
    handed over."""
    worker = hire()
    worker.swap()
    until(lambda: worker.ready == 1)
    (pid,) = worker.pids()
    worker.server.fetch("SELECT pg_terminate_backend(%s)", [pid])
    until(lambda: not worker.pids())
    if pruned:
        assert len(prune(worker.server, worker.template.name)) >= 1
    oids = set()
    for _ in range(5):
        oids.add(worker.swap())
        assert worker.execute("SELECT count(*) FROM item") == [(100,)]
    assert len(oids) == 5
    worker.pool.close()
    assert project.clones(worker.server) == [worker.name]


def test_a_pool_whose_session_was_ended_is_emptied_all_the_same(
    project: Project, hire: Hire
) -> None:
    worker = hire()
    worker.swap()
    until(lambda: worker.ready == 1)
    (pid,) = worker.pids()
    worker.server.fetch("SELECT pg_terminate_backend(%s)", [pid])
    worker.pool.close()
    assert project.clones(worker.server) == [worker.name]


def test_a_server_that_is_gone_ends_the_swap_with_an_error_and_the_pool_in_silence(
    hire: Hire, own: Settings
) -> None:
    worker = hire(cache_dir=str(own.cache))
    worker.swap()
    until(lambda: worker.ready == 1)
    assert worker.server.embedded is not None
    worker.server.embedded.cluster.stop()
    for _ in range(3):
        with pytest.raises((psycopg.OperationalError, ServerError)):
            worker.swap()
    worker.pool.close()
    worker.pool.close()


def test_a_wait_for_a_copy_has_an_end_and_closing_does_not_wait_for_it(
    project: Project, hire: Hire
) -> None:
    """Somebody else has the only place for copying, and keeps it."""
    worker, other = hire(clone_limit="1", build_timeout="0.2"), hire(run="other")
    with other.server.leases.slot("clone", 1, 60):
        with pytest.raises(TemplateError, match=r"was ready within 0\.2 s"):
            worker.swap()
        worker.pool.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "dbclone pool"]
    assert project.clones(worker.server) == []


def test_closing_ends_a_copy_and_drops_what_it_had_made(
    project: Project, hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, real = hire(), ddl.carry_over

    def carry_over(server: Server, *arguments: Any) -> None:
        until(lambda: worker.pool._closing or worker.pool._wanted)
        until(lambda: worker.pool._wanted or not _alive(server))
        real(server, *arguments)

    def _alive(server: Server) -> bool:
        return bool(
            worker.server.fetch(
                "SELECT FROM pg_stat_activity WHERE pid = %s", [server.connection.info.backend_pid]
            )
        )

    monkeypatch.setattr(ddl, "carry_over", carry_over)
    worker.swap()
    until(lambda: len(project.clones(worker.server)) == 2)
    worker.pool.close()
    assert project.clones(worker.server) == [worker.name]


def test_the_server_is_stopped_by_its_last_user_although_there_was_a_pool(
    hire: Hire, own: Settings
) -> None:
    worker = hire(cache_dir=str(own.cache))
    worker.swap()
    worker.close()
    assert worker.server.embedded is not None
    assert worker.server.embedded.cluster.pid() is None
