"""Many processes at once: one build, as many clones as are wanted, and nobody meets anybody.

The environment variable TEST_LOAD says how many clones each of them has one after the other: 1 by
default, 10 for a real load.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dbclone.server.server import Server

from ..conftest import Project
from .aftermath import Foreign
from .nursery import Child, Start

CLONES = int(os.environ.get("TEST_LOAD", "1"))
LIMIT = 90 + 30 * CLONES  # seconds: only a hang comes near
BUILT = """
import os
import psycopg

def make(url):
    with open(os.path.join(os.path.dirname(__file__), "builds.txt"), "a") as log:
        log.write(f"{os.getpid()}\\n")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE item AS SELECT id, NULL::text AS signature FROM generate_series(1, ROWS) AS id")
        for number in range(20):
            connection.execute(f"CREATE TABLE table_{number} (id serial PRIMARY KEY, name text UNIQUE)")
"""


@pytest.fixture
def shop_project(project: Project) -> Project:
    """Its schema notes each of its builds in builds.txt."""
    return prepared(project, 100)


def prepared(project: Project, rows: int) -> Project:
    """Give a project its schema, with so many rows."""
    project.configure(schema="built:make", bind=None)
    project.write(built=BUILT.replace("ROWS", str(rows)))
    return project


def builds(project: Project) -> int:
    return len((project.folder / "builds.txt").read_text().split())


def together(crowd: dict[str, Child]) -> list[dict[str, Any]]:
    """Let all children through the gate at once; return what they found, none of which is an error
    nor anybody else's."""
    for child in crowd.values():
        child.reaches("gate")
    for child in crowd.values():
        child.go()
    results = [child.result() for child in crowd.values()]
    assert not [result["text"] for result in results if "error" in result]
    for signature, result in zip(crowd, results, strict=True):
        assert len(result["found"]) == CLONES
        for (_, signed), signatures in result["found"]:
            assert (signed, signatures) == (0, [[signature]]), (
                "a clone is fresh, and stays its owner's"
            )
        assert signature in crowd
    return results


def test_sixty_four_processes_on_two_machines_build_once_and_have_clones_of_their_own(
    project: Project, project_server: Server, start: Start, others: Foreign, tmp_path: Path
) -> None:
    """A3, A5, B4, E5: all of them are cold, half have their lock files elsewhere, and each prunes
    while all others work."""
    machines: list[dict[str, str]] = [
        {},
        {"url": project_server.dsn.url, "cache_dir": str(tmp_path / "elsewhere")},
    ]
    crowd = {
        f"r gw{n}": start(
            "churn",
            {"gate": "wait"},
            machines[n % 2],
            limit=LIMIT,
            owner=f"gw{n}",
            run="r",
            clones=CLONES,
        )
        for n in range(64)
    }
    results = together(crowd)
    assert len({(result["name"], result["oid"]) for result in results}) == 1
    assert [result["built"] for result in results].count(True) == 1
    assert builds(project) == 1
    assert {state[0] for result in results for state, _ in result["found"]} == {100}
    assert project.databases(project_server) == [results[0]["name"]]
    others.untouched()


def test_projects_checkouts_and_runs_on_one_server_never_meet(
    project: Project, project_server: Server, start: Start, others: Foreign, tmp_path: Path
) -> None:
    """E7, E5, promise 17: two runs of a checkout, another checkout of the same project with another
    fingerprint, another project; their workers have the same names."""
    checkout = prepared(replace(project, folder=tmp_path / "checkout"), 200)
    another = prepared(replace(project, folder=tmp_path / "another", name=f"{project.name}x"), 300)
    places = {"one": project, "two": project, "three": checkout, "four": another}
    crowd = {
        f"{run} gw{n}": start(
            "churn",
            {"gate": "wait"},
            folder=place.folder,
            limit=LIMIT,
            owner=f"gw{n}",
            run=run,
            clones=CLONES,
        )
        for run, place in places.items()
        for n in range(6)
    }
    results = together(crowd)
    for signature, result in zip(crowd, results, strict=True):
        rows = {"one": 100, "two": 100, "three": 200, "four": 300}[signature.partition(" ")[0]]
        assert {state[0] for state, _ in result["found"]} == {rows}
    assert sorted(Counter(result["name"] for result in results).values()) == [6, 6, 12]
    assert [builds(place) for place in (project, checkout, another)] == [1, 1, 1]
    assert project.clones(project_server) == another.clones(project_server) == []
    assert len(project.databases(project_server)) == 2
    assert len(another.databases(project_server)) == 1
    others.untouched()
