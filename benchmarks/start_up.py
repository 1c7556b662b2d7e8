"""What a session pays for dbclone before and after its tests.

Goal: second `prepare` on a running server ≤ 100 ms; a pytest session with one trivial test ≤ 100 ms
with the server running and ≤ 350 ms with the server stopped; each beyond the control. Control: the
same process without dbclone: an interpreter that imports psycopg and peewee; a pytest session whose
one test imports them, with as many workers. Factors (do not change): whole processes,
interleaving_limit A B C A B C, byte code cached, a project with two peewee models. Cold is without
data and without a template (initdb, build), warm with the server stopped, hot with the server
running.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbclone.server.private.embedded import Embedded
from dbclone.settings import load

from .pairs import summary
from .places import Place, child_environment, say

MODELS = """
from peewee import CharField, ForeignKeyField, Model, PostgresqlDatabase
db = PostgresqlDatabase(None, prefer_psycopg3=True)
class User(Model):
    name = CharField(unique=True)
    class Meta: database = db
class Post(Model):
    user = ForeignKeyField(User)
    class Meta: database = db
MODELS = [User, Post]
"""
_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


@dataclass(frozen=True)
class Contender:
    """A process that is measured, after `before`, which is not; `control`, the name of what its
    time is held against."""

    name: str
    folder: Path
    words: tuple[str, ...]
    before: Callable[[], None] | None = None
    control: str = ""
    dear: bool = False


@dataclass(frozen=True)
class Projects:
    """Two projects, one of which uses dbclone, and a private server of their own."""

    place: Place

    @property
    def folder(self) -> Path:
        return self.place.folder / "project"

    @property
    def bare(self) -> Path:
        return self.place.folder / "bare"

    @property
    def cache(self) -> Path:
        return self.place.folder / "start-up"

    def write(self) -> None:
        for path in (self.folder, self.bare):
            path.mkdir()
            (path / "models.py").write_text(MODELS)
        table = '[tool.dbclone]\nschema = "models:MODELS"\nbind = "models:db"\nname = "startup"\n'
        (self.folder / "pyproject.toml").write_text(table)
        (self.folder / "test_it.py").write_text(
            "import models\ndef test_it(dbclone):\n    assert models.User.select().count() == 0\n"
        )
        (self.bare / "test_it.py").write_text(
            "import psycopg, models\ndef test_it():\n    assert models.User\n"
        )

    def run(self, folder: Path, *words: str) -> float:
        """Run a Python process in a folder and return its seconds."""
        options = (
            {"cache_dir": str(self.cache), "binaries": self.place.binaries}
            if folder == self.folder
            else {}
        )
        environ = {f"DBCLONE_{key.upper()}": value for key, value in options.items() if value}
        environ = child_environment(PYTHONPYCACHEPREFIX=str(self.place.folder / "pyc"), **environ)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, *words], cwd=folder, env=environ, check=True, capture_output=True
        )
        return time.perf_counter() - started

    def server(self, word: str) -> None:
        self.run(self.folder, "-m", "dbclone", "server", word)

    def wipe(self) -> None:
        """Stop the server and remove all that dbclone ever made here but what it copied once
        (binaries for another account)."""
        self.server("stop")
        found = Embedded.locate(
            load(
                self.folder,
                {"cache_dir": str(self.cache), "binaries": self.place.binaries or None},
                {},
            )
        )
        shutil.rmtree(found.cluster.folder, ignore_errors=True)

    def remove(self) -> None:
        self.server("stop")
        found = Embedded.locate(
            load(
                self.folder,
                {"cache_dir": str(self.cache), "binaries": self.place.binaries or None},
                {},
            )
        )
        for folder in (found.home, found.disk):
            shutil.rmtree(folder, ignore_errors=True)

    def contenders(self) -> list[Contender]:
        """Return what is measured, controls first."""
        stop, start = lambda: self.server("stop"), lambda: self.server("start")
        python, imports = "interpreter", ("-c", "import psycopg, models, argparse, json")
        found = [
            Contender(python, self.bare, ("-c", "pass")),
            Contender("import dbclone", self.bare, ("-c", "import dbclone"), control=python),
            Contender(
                "import dbclone.pytest_plugin.plugin",
                self.bare,
                ("-c", "import dbclone.pytest_plugin.plugin"),
                control="import pytest",
            ),
            Contender("import pytest", self.bare, ("-c", "import pytest")),
            Contender("psycopg, peewee", self.bare, imports),
            Contender(
                "prepare, warm", self.folder, ("-m", "dbclone", "prepare"), stop, "psycopg, peewee"
            ),
            Contender(
                "prepare, hot", self.folder, ("-m", "dbclone", "prepare"), start, "psycopg, peewee"
            ),
        ]
        for workers in (0,) if self.place.quick else (0, 2, 4):
            pytest, control = (*_PYTEST, "-n", str(workers)), f"pytest -n {workers}, not using it"
            found.append(
                Contender(
                    control, self.bare, pytest, control="" if workers else "pytest -n 0, plugin off"
                )
            )
            if not workers:
                found.append(
                    Contender("pytest -n 0, plugin off", self.bare, (*pytest, "-p", "no:dbclone"))
                )
            found += [
                Contender(
                    f"pytest -n {workers}, cold", self.folder, pytest, self.wipe, control, dear=True
                ),
                Contender(f"pytest -n {workers}, warm", self.folder, pytest, stop, control),
                Contender(f"pytest -n {workers}, hot", self.folder, pytest, start, control),
            ]
        return found


def measure(place: Place) -> dict[str, Any]:
    """Run all contenders in turns, and return their times and what is beyond their controls, run by
    run, in milliseconds."""
    projects = Projects(place)
    projects.write()
    contenders = projects.contenders()
    times: dict[str, dict[int, float]] = {contender.name: {} for contender in contenders}
    runs = 1 if place.quick else 9
    try:
        projects.run(projects.folder, "-m", "dbclone", "prepare")
        for number in range(runs + 1):
            say(f"start-up: run {number} of {runs}", passing=bool(number % 5))
            for contender in contenders:
                if contender.dear and number > 2:
                    continue
                if contender.before is not None:
                    contender.before()
                taken = projects.run(contender.folder, *contender.words)
                if number:  # the first round fills caches
                    times[contender.name][number] = taken * 1000
            if place.left < 0 and number:
                break
    finally:
        projects.remove()
    return {"rows": [_row(contender, times) for contender in contenders]}


def _row(contender: Contender, times: dict[str, dict[int, float]]) -> dict[str, Any]:
    own = times[contender.name]
    row = {"name": contender.name, **summary(list(own.values())), "runs_ms": list(own.values())}
    if contender.control:
        beyond = [value - times[contender.control][number] for number, value in own.items()]
        row |= {"control": contender.control, "beyond": summary(beyond)}
    return row
