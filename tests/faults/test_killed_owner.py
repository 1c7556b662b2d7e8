"""Owners of clones killed by SIGKILL, or interrupted by Ctrl-C, at every step of their lives:
making, resetting, dropping."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from dbclone.databases.prune import prune
from dbclone.server.server import Server
from dbclone.settings import load

from ..conftest import Project
from .aftermath import Foreign, all_well, ensure, nobody_holds, write
from .nursery import Start
from .stops import until

LIVES = {
    "rollback": (
        "leased",
        "created",
        "carrying",
        "cloned",
        "in the test",
        "rolling back",
        "rolled back",
        "dropping",
        "dropped",
    ),
    "truncate": ("in the test", "asking", "putting right", "put right"),
    "clone": ("handing over", "handed over"),
    "drop": ("clearing", "cleared"),
    "snapshot": ("putting aside", "put aside", "dropping", "dropped"),
}


def other_run(server: Server) -> Server:
    """Return the same server for a run that keeps only the newest template."""
    return replace(server, settings=replace(server.settings, retain_templates=1))


@pytest.mark.parametrize("reset", LIVES)
def test_owners_killed_at_every_step_leave_what_is_found_again_and_the_same_owner_can_come_back(
    reset: str,
    project: Project,
    project_server: Server,
    start: Start,
    truth: dict[str, str],
    others: Foreign,
) -> None:
    """B1, E3, E11, promise 8: the same run and worker again, as when a worker is restarted; and
    prune after all of them."""
    ensure(project_server)
    dead = {
        step: start("live", {step: "die"}, owner="gw0", run=step, reset=reset)
        for step in LIVES[reset]
    }
    for step, child in dead.items():
        child.reaches(step)
        child.kill()
    nobody_holds(project, project_server)
    # Killed before there was a database, or after it had dropped its only one, an owner leaves
    # none.
    fewest = len([step for step in dead if step not in ("leased", "dropped")])
    assert len(project.clones(project_server)) >= fewest
    all_well(project, project_server, truth, others, [("gw0", step) for step in dead])


@pytest.mark.parametrize("reset", LIVES)
def test_owners_interrupted_at_every_step_take_their_databases_with_them(
    reset: str,
    project: Project,
    project_server: Server,
    start: Start,
    truth: dict[str, str],
    others: Foreign,
) -> None:
    """E10: Ctrl-C is an exception like any other: whoever is interrupted cleans up and ends."""
    ensure(project_server)
    # Between a call that returns a clone and who gets it, there is nobody to drop it but prune; the
    # drop itself is last of all.
    steps = [step for step in LIVES[reset] if step not in ("cloned", "dropping", "dropped")]
    interrupted = {
        step: start("live", {step: "interrupt"}, owner="gw0", run=step, reset=reset)
        for step in steps
    }
    for step, child in interrupted.items():
        child.reaches(step)
        assert "KeyboardInterrupt" in child.end()
    nobody_holds(project, project_server)
    assert project.clones(project_server) == []
    all_well(project, project_server, truth, others, [])


@pytest.mark.parametrize("step", ["created", "filling", "filled", "closed", "sealed"])
def test_a_builder_that_is_interrupted_leaves_nothing(
    step: str, project: Project, project_server: Server, start: Start
) -> None:
    """E10."""
    child = start("ensure", {step: "interrupt"})
    child.reaches(step)
    assert "KeyboardInterrupt" in child.end()
    assert project.databases(project_server) == []


@pytest.mark.parametrize("step", ["dropping", "unsealed", "dropped"])
def test_a_prune_that_is_killed_leaves_a_template_or_none(
    step: str,
    project: Project,
    project_server: Server,
    start: Start,
    truth: dict[str, str],
    others: Foreign,
    options: dict[str, str],
) -> None:
    """A1, E4: of a template that it was dropping, which may have lost its seal and not yet its
    life, nobody makes a clone."""
    with Server.open(load(project.folder, options, {})) as other:
        older = ensure(other).name
    (project.folder / "schema.sql").write_text("CREATE TABLE newer ();")
    newer = ensure(project_server).name
    until(
        lambda: (
            older
            in [
                database.name
                for database, _ in prune(other_run(project_server), newer, dry_run=True)
            ]
        )
    )
    child = start("prune", {step: "die"}, {"retain_templates": "1"}, current=newer)
    child.reaches(step)
    child.kill()
    assert project.databases(project_server) == sorted(
        [newer, *([] if step == "dropped" else [older])]
    )
    nobody_holds(project, project_server)
    write(project)
    found = ensure(project_server)
    assert (found.name, found.built) == (older, step != "dropping")
    project_server.leases.release(newer, shared=True)
    prune(other_run(project_server), older)
    all_well(project, project_server, truth, others)


def test_a_drop_goes_on_without_the_owner_who_was_killed_while_it_waited(
    project: Project, project_server: Server, start: Start, truth: dict[str, str], others: Foreign
) -> None:
    """E3: DROP DATABASE is stopped for certain by a lock on the catalogue that it has to write to."""
    ensure(project_server)
    url = project_server.dsn.replace(options="-c client_connection_check_interval=0").url
    child = start(
        "live", {"in the test": "wait"}, {"url": url}, owner="gw0", run="r", reset="rollback"
    )
    child.reaches("in the test")
    (name,) = project.clones(project_server)
    waiting = "SELECT FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%%' AND query ~ %s AND wait_event_type = 'Lock'"
    with psycopg.connect(**project_server.dsn.kwargs) as blocker:  # type: ignore[arg-type]
        blocker.execute("LOCK TABLE pg_database IN SHARE MODE")
        child.go()
        until(lambda: bool(project_server.fetch(waiting, [name])))
        child.kill()
        assert project.clones(project_server) == [name]
        prune(project_server)
        assert project.clones(project_server) == [name], (
            "its lease is held until the server has finished"
        )
        blocker.rollback()
    until(lambda: project.clones(project_server) == [])
    all_well(project, project_server, truth, others, [("gw0", "r")])
