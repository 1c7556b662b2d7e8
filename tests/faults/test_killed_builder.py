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
    step: str, project: Project, shop: Server, start: Start, truth: dict[str, str], others: Foreign
) -> None:
    """A1: complete or absent. The next one builds without help, or uses what was complete, and
    prune drops the rest."""
    dies(start("ensure", {step: "die"}), step, shop)
    left = project.databases(shop)
    assert len(left) == (step != "leased")
    before = {name for name in left if "_t_" in name}
    template = ensure(shop)
    assert template.built == (step != "renamed")
    assert before == ({template.name} if step == "renamed" else set())
    all_well(project, shop, truth, others)


@pytest.mark.parametrize("step", ["sealed", "swapped"])
def test_a_builder_killed_while_it_replaces_a_template_leaves_the_old_or_the_new_one(
    step: str, project: Project, shop: Server, start: Start, truth: dict[str, str], others: Foreign
) -> None:
    """A1, for `rebuild`: there is no moment without a complete template, and the other one does not
    stay."""
    before = ensure(shop)
    dies(start("ensure", {step: "die"}, rebuild=True), step, shop)
    assert len(project.databases(shop)) == 2
    after = all_well(project, shop, truth, others)
    assert not after.built
    assert (after.database.oid == before.database.oid) == (step == "sealed")


def test_a_leftover_of_a_killed_builder_does_not_push_older_templates_out(
    project: Project, shop: Server, start: Start, options: dict[str, str]
) -> None:
    """A1: what was sealed but never published is no template, so it counts neither for retention
    nor in `why`."""
    (project.folder / "schema.sql").write_text(SCHEMA + "CREATE TABLE older ();")
    with Server.open(load(project.folder, options, {})) as other:
        older = ensure(other)
    (project.folder / "schema.sql").write_text(SCHEMA)
    dies(start("ensure", {"sealed": "die"}), "sealed", shop)
    current = ensure(shop)
    assert current.why == ("file schema.sql changed",)
    with Server.open(load(project.folder, {**options, "retain_templates": "2"}, {})) as keeping_two:
        prune(keeping_two, current.name)
    assert project.databases(shop) == sorted([older.name, current.name])


def test_a_database_in_which_a_dead_builder_s_migration_still_writes_is_left_to_it(
    project: Project, shop: Server, start: Start
) -> None:
    """A2: the program that a killed builder had started lives on. Nobody shares its database,
    nobody drops it under its feet."""
    child = start("ensure", {"filled": "wait"})
    child.reaches("filled")
    (private,) = project.databases(shop)
    with psycopg.connect(**shop.database(private).kwargs, autocommit=True) as orphan:  # type: ignore[arg-type]
        child.kill()
        gone(child, shop)
        template = ensure(shop)
        assert template.built
        prune(shop, template.name)
        orphan.execute("INSERT INTO item (name) VALUES ('late')")
        with template.clone() as clone, clone.connect() as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (100,)
        pid = orphan.info.backend_pid
    ended(shop, pid)
    prune(shop, template.name)
    assert project.databases(shop) == [template.name]


def test_a_clone_whose_owner_died_inside_create_database_is_recognised_and_pruned(
    project: Project, shop: Server, start: Start, options: dict[str, str]
) -> None:
    """B1: the server goes on without its client. The database that appears has no comment, only our
    connection limit; its lease is held until it is there, so nobody takes it for something else in
    between.

    CREATE DATABASE is stopped for certain by a lock on the catalogue that it has to write to.
    """
    template = ensure(shop)
    # The client is not looked for while it waits: on a private server it would be, once a second.
    url = shop.dsn.replace(options="-c client_connection_check_interval=0").url
    with psycopg.connect(**shop.dsn.kwargs) as blocker:  # type: ignore[arg-type]
        blocker.execute("LOCK TABLE pg_database IN SHARE MODE")
        child = start("clone", more={"url": url}, owner="gw0", run="r")
        waiting = (
            "SELECT FROM pg_stat_activity"
            " WHERE application_name LIKE %s AND query LIKE 'CREATE DATABASE%%' AND"
            " wait_event_type = 'Lock'"
        )
        until(lambda: bool(shop.fetch(waiting, [f"%:{child.pid}"])))
        child.kill()
        assert shop.fetch(waiting, [f"%:{child.pid}"])
        assert project.clones(shop) == []
        blocker.rollback()
    gone(child, shop)
    (name,) = project.clones(shop)
    found = ddl.find(shop, name)
    assert found is not None
    assert (found.mark, found.comment, found.limit) == (
        None,
        None,
        limit_for(name, shop.facts.system),
    )
    assert shop.leases.acquire(name)
    with Server.open(load(project.folder, options, {})) as other:
        prune(other, template.name)
    assert project.clones(shop) == [name], "its lease is held again"
    shop.leases.release(name)
    assert lock_key(name) not in shop.leases.held()
    prune(shop, template.name)
    assert project.databases(shop) == [template.name]
