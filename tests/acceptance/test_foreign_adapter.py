"""Somebody else's distribution brings an adapter for a library of its own, which dbclone has never
heard of: it is found by the type of the handle, through an entry point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dbclone.adapters.discovery import GROUP, OWN

from ..conftest import Project
from .conftest import Developer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


LIBRARY = '''
import psycopg

class Database:
    """A handle of an invented library: at most one connection, opened by the first statement."""

    def __init__(self, **parameters):
        self.parameters, self.connection = parameters, None

    def open(self):
        return psycopg.connect(autocommit=True, **self.parameters)

    def run(self, statement):
        if self.connection is None:
            self.connection = self.open()
        return self.connection.execute(statement)
'''

ADAPTER = """
from acme import Database
from dbclone.adapters.base import Adapter, Target
from dbclone.adapters.hooks import door

door(Database, "open")

class AcmeTarget(Target):
    def place(self):
        given = self.thing.parameters
        return tuple(str(given.get(name, "")) for name in ("host", "port", "dbname"))

    def point_at(self, url):
        if not hasattr(self, "before"):
            self.before = self.thing.parameters
        self.close()
        self.thing.parameters = {"conninfo": url}

    def point_back(self):
        self.close()
        self.thing.parameters = self.before

    def close(self):
        if self.thing.connection is not None:
            self.thing.connection.close()
        self.thing.connection = None

class SandboxedTarget(AcmeTarget):
    def unsupported_reason(self):
        return ""

    def sandbox(self, session):
        self.own, self.thing.connection = self.thing.connection, None
        self.thing.open = lambda: session.connect(autocommit=True)

    def unsandbox(self):
        del self.thing.open
        self.close()
        self.thing.connection = self.own

class AcmeAdapter(Adapter):
    kind = SandboxedTarget

    def target(self, thing):
        return self.kind(thing)

class PlainAdapter(AcmeAdapter):
    kind = AcmeTarget
"""

APPLICATION = """
import json, os
from acme import Database

class Shop(Database):
    pass

db = Shop(**json.loads(os.environ["DEV"]))
"""

TESTS = """
import pytest
from app import db

def add_and_count(name):
    db.run('INSERT INTO "user" (name) VALUES (%r)' % name)
    ((count, where),) = db.run('SELECT count(*), current_database() FROM "user"').fetchall()
    return count, where.startswith("dbclone_")

@pytest.mark.parametrize("name", ["ann", "bob"])
def test_it_is_isolated(dbclone, name):
    assert dbclone.reset == {reset!r}
    assert add_and_count(name) == (1, True)
    assert dbclone.execute('SELECT name FROM "user"').fetchall() == [(name,)]
"""


def write(project: Project, adapter: str, reset: str, tests: str = TESTS) -> dict[str, Any]:
    """Write a project whose handle is of the library, and the distribution with its adapter; return
    the environment in which they are found."""
    site = project.folder / "site"
    info = site / "acme_dbclone-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-dbclone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nacme = acme_dbclone:{adapter}\n")
    (site / "acme.py").write_text(LIBRARY)
    (site / "acme_dbclone.py").write_text(ADAPTER)
    (project.folder / "tables.sql").write_text('CREATE TABLE "user" (id serial, name text);')
    project.configure(schema="tables.sql", bind="app:db", reset=reset)
    project.write(app=APPLICATION, test_app=tests.replace("{reset!r}", repr(reset)))
    return {"PYTHONPATH": f"{site}:{project.environ.get('PYTHONPATH', '')}"}


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])
def test_a_handle_of_an_unknown_library_is_isolated(
    project: Project, developer: Developer, reset: str
) -> None:
    found = write(project, "AcmeAdapter", reset)
    ran = project.pytest("-q", **found, **developer.environ)
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


def test_an_adapter_without_a_sandbox_is_isolated_otherwise(
    project: Project, developer: Developer
) -> None:
    tests = TESTS.replace("{reset!r}", "'truncate'")
    ran = project.pytest("-q", **write(project, "PlainAdapter", "auto", tests), **developer.environ)
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr
    project.configure(schema="tables.sql", bind="app:db", reset="rollback")
    ran = project.pytest("-q", PYTHONPATH=str(project.folder / "site"), **developer.environ)
    assert "cannot be isolated by rollback" in ran.stdout
    assert "the adapter of Shop knows no sandbox" in ran.stdout.replace("The", "the")


def test_its_door_keeps_a_test_without_isolation_out(
    project: Project, developer: Developer
) -> None:
    """Also the first one, before the handle has been led anywhere."""
    tests = """
from app import db

def test_forgot():
    db.run('DELETE FROM "user"')
"""
    ran = project.pytest("-q", **write(project, "AcmeAdapter", "auto", tests), **developer.environ)
    assert "1 failed" in ran.stdout, ran.stdout + ran.stderr
    assert "app:db is used by test_app.py::test_forgot without isolation" in ran.stdout


def test_an_adapter_that_cannot_be_loaded_is_named(project: Project, developer: Developer) -> None:
    found = write(project, "Missing", "auto")
    ran = project.pytest("-q", **found, **developer.environ)
    assert ran.returncode != 0
    assert "the adapter acme_dbclone:Missing cannot be loaded: AttributeError" in ran.stdout


def test_ours_are_declared_in_the_same_group() -> None:
    path = Path(__file__).parents[2] / "pyproject.toml"
    declared = tomllib.loads(path.read_text())["project"]["entry-points"][GROUP]
    assert declared == OWN
