"""Builders and cloners killed by SIGKILL at a known step: what they leave is never used, and is
found and dropped."""

from __future__ import annotations

import psycopg
import pytest

from dbclone.databases import ddl
from dbclone.databases.naming import limit_for
from dbclone.databases.prune import prune
from dbclone.server.locks import lock_key
from dbclone.server.server import Server
from dbclone.settings import load

from ..conftest import Project
from .aftermath import SCHEMA, Foreign, all_well, ensure
from .nursery import Child, Start
from .stops import ended, until


def dies(child: Child, step: str, server: Server) -> None:
    """Wait until a child has killed itself at a step, and its sessions have noticed."""
    child.reaches(step)
    child.kill()
    gone(child, server)


def gone(child: Child, server: Server) -> None:
    query = "SELECT FROM pg_stat_activity WHERE application_name LIKE %s"
    until(lambda: not server.fetch(query, [f"%:{child.pid}"]))


@pytest.mark.parametrize(
    "step",
    [
        "leased",
        "created",
        "commented",
        "filling",
        "filled",
        "closed",
        "finished",
        "sealed",
        "renamed",
    ],
)
def test_a_builder_killed_at_any_step_leaves_nothing_half_built_that_is_used(
    step: str,
    project: Project,
    project_server: Server,
    start: Start,
    truth: dict[str, str],
    others: Foreign,
) -> None:
    """A1: complete or absent. The next one builds without help, or uses what was complete, and
    prune drops the rest."""
    dies(start("ensure", {step: "die"}), step, project_server)
    left = project.databases(project_server)
    assert len(left) == (step != "leased")
    before = {name for name in left if "_t_" in name}
    template = ensure(project_server)
    assert template.built == (step != "renamed")
    assert before == ({template.name} if step == "renamed" else set())
    all_well(project, project_server, truth, others)


@pytest.mark.parametrize("step", ["sealed", "swapped"])
def test_a_builder_killed_while_it_replaces_a_template_leaves_the_old_or_the_new_one(
    step: str,
    project: Project,
    project_server: Server,
    start: Start,
    truth: dict[str, str],
    others: Foreign,
) -> None:
    """A1, for `rebuild`: there is no moment without a complete template, and the other one does not
    stay."""
    before = ensure(project_server)
    dies(start("ensure", {step: "die"}, rebuild=True), step, project_server)
    assert len(project.databases(project_server)) == 2
    after = all_well(project, project_server, truth, others)
    assert not after.built
    assert (after.database.oid == before.database.oid) == (step == "sealed")


def test_a_leftover_of_a_killed_builder_does_not_push_older_templates_out(
    project: Project, project_server: Server, start: Start, options: dict[str, str]
) -> None:
    """A1: what was sealed but never published is no template, so it counts neither for retention
    nor in `why`."""
    (project.folder / "schema.sql").write_text(SCHEMA + "CREATE TABLE older ();")
    with Server.open(load(project.folder, options, {})) as other:
        older = ensure(other)
    (project.folder / "schema.sql").write_text(SCHEMA)
    dies(start("ensure", {"sealed": "die"}), "sealed", project_server)
    current = ensure(project_server)
    assert current.why == ("file schema.sql changed",)
    with Server.open(load(project.folder, {**options, "retain_templates": "2"}, {})) as keeping_two:
        prune(keeping_two, current.name)
    assert project.databases(project_server) == sorted([older.name, current.name])


def test_a_database_in_which_a_dead_builder_s_migration_still_writes_is_left_to_it(
    project: Project, project_server: Server, start: Start
) -> None:
    """A2: the program that a killed builder had started lives on. Nobody shares its database,
    nobody drops it under its feet."""
    child = start("ensure", {"filled": "wait"})
    child.reaches("filled")
    (private,) = project.databases(project_server)
    with psycopg.connect(**project_server.database(private).kwargs, autocommit=True) as orphan:  # type: ignore[arg-type]
        child.kill()
        gone(child, project_server)
        template = ensure(project_server)
        assert template.built
        prune(project_server, template.name)
        orphan.execute("INSERT INTO item (name) VALUES ('late')")
        with template.clone() as clone, clone.connect() as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (100,)
        pid = orphan.info.backend_pid
    ended(project_server, pid)
    prune(project_server, template.name)
    assert project.databases(project_server) == [template.name]


def test_a_clone_whose_owner_died_inside_create_database_is_recognised_and_pruned(
    project: Project, project_server: Server, start: Start, options: dict[str, str]
) -> None:
    """B1: the server goes on without its client. The database that appears has no comment, only our
    connection limit; its lease is held until it is there, so nobody takes it for something else in
    between.

    CREATE DATABASE is stopped for certain by a lock on the catalogue that it has to write to.
    """
    template = ensure(project_server)
    # The client is not looked for while it waits: on a private server it would be, once a second.
    url = project_server.dsn.replace(options="-c client_connection_check_interval=0").url
    with psycopg.connect(**project_server.dsn.kwargs) as blocker:  # type: ignore[arg-type]
        blocker.execute("LOCK TABLE pg_database IN SHARE MODE")
        child = start("clone", more={"url": url}, owner="gw0", run="r")
        waiting = (
            "SELECT FROM pg_stat_activity"
            " WHERE application_name LIKE %s AND query LIKE 'CREATE DATABASE%%' AND"
            " wait_event_type = 'Lock'"
        )
        until(lambda: bool(project_server.fetch(waiting, [f"%:{child.pid}"])))
        child.kill()
        assert project_server.fetch(waiting, [f"%:{child.pid}"])
        assert project.clones(project_server) == []
        blocker.rollback()
    gone(child, project_server)
    (name,) = project.clones(project_server)
    found = ddl.find(project_server, name)
    assert found is not None
    assert (found.mark, found.comment, found.limit) == (
        None,
        None,
        limit_for(name, project_server.facts.system),
    )
    assert project_server.leases.acquire(name)
    with Server.open(load(project.folder, options, {})) as other:
        prune(other, template.name)
    assert project.clones(project_server) == [name], "its lease is held again"
    project_server.leases.release(name)
    assert lock_key(name) not in project_server.leases.held()
    prune(project_server, template.name)
    assert project.databases(project_server) == [template.name]
