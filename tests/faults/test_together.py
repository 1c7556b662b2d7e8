"""Processes that want the same at the same time: one builds, one gets, nobody is harmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbclone.adapters import handles
from dbclone.databases import copying
from dbclone.databases.prune import prune
from dbclone.server.server import Server
from dbclone.template.template import Template

from ..conftest import Project
from .nursery import Start

BUILT = """
import os
import psycopg

def make(url):
    with open(os.path.join(os.path.dirname(__file__), "builds.txt"), "a") as log:
        log.write(f"{os.getpid()}\\n")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE item AS SELECT generate_series(1, 100) AS id")
"""


@pytest.fixture
def shop_project(project: Project) -> Project:
    """Its schema notes each of its builds in builds.txt."""
    project.configure(schema="built:make", bind=None)
    project.write(built=BUILT)
    return project


def builds(project: Project) -> list[int]:
    """Return the process ids of all builds so far."""
    return [int(line) for line in (project.folder / "builds.txt").read_text().split()]


def locks(cache: Path) -> list[Path]:
    """Return the lock files of builds."""
    return [
        path for path in (cache / "locks").glob("*.lock") if not path.name.startswith("server-")
    ]


def test_two_machines_with_nothing_in_common_but_the_server_build_once(
    project: Project, project_server: Server, start: Start, tmp_path: Path
) -> None:
    """A5: no file is shared, so only the lock in the server excludes."""
    url = project_server.dsn.url
    first = start("ensure", {"filled": "wait"}, {"url": url, "cache_dir": str(tmp_path / "one")})
    first.reaches("filled")
    second = start("ensure", {"waiting": "wait"}, {"url": url, "cache_dir": str(tmp_path / "two")})
    second.reaches("waiting")
    assert len(locks(tmp_path / "one")) == len(locks(tmp_path / "two")) == 1
    first.go()
    made = first.result()
    second.go()
    assert second.result() == {**made, "built": False}
    assert builds(project) == [first.pid]


def test_a_lock_file_that_is_deleted_while_it_is_held_does_not_let_a_second_builder_in(
    project: Project, start: Start, cache: Path
) -> None:
    """A4: a cleaner of temporary files removes the lock file; the next one locks another file of
    the same name."""
    earlier = set(locks(cache))
    first = start("ensure", {"filled": "wait"})
    first.reaches("filled")
    (held,) = set(locks(cache)) - earlier
    held.unlink()
    second = start("ensure", {"waiting": "wait"})
    second.reaches("waiting")
    assert held.exists(), "the second one holds a lock file of its own"
    first.go()
    made = first.result()
    second.go()
    assert second.result() == {**made, "built": False}
    assert builds(project) == [first.pid]


def test_the_rename_decides_even_if_no_lock_excludes_anybody(
    project: Project, project_server: Server, start: Start
) -> None:
    """A4, A6: both build all of it, one publishes, the other uses that and drops its own."""
    both = [start("ensure", {"sealed": "wait"}, unlocked=True) for _ in range(2)]
    for child in both:
        child.reaches("sealed")
    assert len(project.databases(project_server)) == 2
    for child in both:
        child.go()
    first, second = (child.result() for child in both)
    assert (first["name"], first["oid"]) == (second["name"], second["oid"])
    assert sorted(builds(project)) == sorted(child.pid for child in both)
    assert project.databases(project_server) == [first["name"]]


def test_who_waits_too_long_is_told_who_builds(project: Project, start: Start) -> None:
    """A9: the error names the builder's process and what it does."""
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(
        "CREATE TABLE unusual_name (id int);\nINSERT INTO unusual_name VALUES (1);\n"
    )
    first = start("ensure", {"filling": "wait"})
    first.reaches("filling")
    error = start("ensure", more={"build_timeout": "0.5"}).result()
    assert error["error"] == "BuildTimeout"
    assert f":{first.pid} (server process " in error["text"]
    assert "CREATE TABLE unusual_name" in error["text"]
    first.go()
    assert first.result()["built"]


def test_eight_processes_that_race_for_three_warm_clones_get_each_of_them_once(
    project: Project, project_server: Server, start: Start
) -> None:
    """Claiming is a rename: three get a warm clone, five make their own, all have a database each."""
    template = Template.ensure(project_server, handles.load(project_server.settings)[0])
    assert copying.warm(project_server, template.database, 3) == 3
    warm = {
        oid
        for (oid,) in project_server.fetch(
            "SELECT oid::int8 FROM pg_database WHERE datname = ANY(%s)",
            [project.clones(project_server)],
        )
    }
    crowd = [
        start("clone", {"start": "wait", "end": "wait"}, owner=f"gw{n}", run="r") for n in range(8)
    ]
    for child in crowd:
        child.reaches("start")
    for child in crowd:
        child.go()
    made = [child.result() for child in crowd]
    assert len({clone["oid"] for clone in made}) == 8
    assert {clone["oid"] for clone in made} > warm
    assert sorted(clone["name"] for clone in made) == project.clones(project_server)
    prune(project_server, template.name)
    assert sorted(clone["name"] for clone in made) == project.clones(project_server), (
        "all of them are alive"
    )
