"""One contender's project, run as whole pytest processes against the server of the benchmark."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from .contenders import Contender
from .environments import ROOT, Installed

_PROJECT = Path(__file__).parent / "project"
_STRANGE = ("DBCLONE_", "DJANGO_", "PEERS_", "PG", "PIP_", "PYTEST_", "VIRTUAL_ENV")
_NUMBERS = itertools.count(1)


class Failed(Exception):
    """A process failed, or ran another number of tests than it should: the message says how."""


@dataclass
class Place:
    """The server, as everybody is told of it, and a name that all databases and roles of this run
    have in theirs.

    Arguments: `url` of a superuser; `folder`, for projects and results.
    """

    url: str
    folder: Path
    token: str = field(default_factory=lambda: f"peers{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        with psycopg.connect(self.url) as connection:
            found = connection.info
            self.password = found.password
            self.environ = {
                "PEERS_HOST": found.host or "localhost",
                "PEERS_PORT": str(found.port),
                "PEERS_USER": found.user,
                "PEERS_MAINTENANCE": found.dbname,
                **({"PEERS_PASSWORD": found.password} if found.password else {}),
                "DBCLONE_URL": self.url,
                "DBCLONE_NAME": self.token,
                "DBCLONE_CACHE_DIR": str(self.folder / "cache"),
            }

    def settings(self) -> dict[str, str]:
        """Return the server's version, and those of its settings that decide what databases and
        commits cost."""
        names = [
            "server_version",
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "wal_level",
            "autovacuum",
            "shared_buffers",
        ]
        with psycopg.connect(self.url) as connection:
            return dict(
                connection.execute(
                    "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)",
                    [names],
                )
            )

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Drop at the end of the block whatever contenders left: databases and roles with the token
        in their names."""
        try:
            yield
        finally:
            with psycopg.connect(self.url, autocommit=True) as connection:
                for (name,) in connection.execute(
                    "SELECT datname::text FROM pg_database WHERE datname ~ %s", [self.token]
                ).fetchall():
                    connection.execute(
                        sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name))
                    )
                    connection.execute(
                        sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
                    )
                for (name,) in connection.execute(
                    "SELECT rolname::text FROM pg_roles WHERE rolname ~ %s", [f"^{self.token}"]
                ).fetchall():
                    connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@dataclass
class Project:
    """Arguments: `contender`, whose tests run; `installed`, with what; `patience`, seconds that a
    process may take."""

    place: Place
    contender: Contender
    installed: Installed
    patience: float = 120.0

    def __post_init__(self) -> None:
        self.folder = self.place.folder / f"project{next(_NUMBERS)}"
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("shared", *self.contender.projects):
            shutil.copytree(_PROJECT / part, self.folder, ignore=ignored, dirs_exist_ok=True)
        if not (self.folder / "pyproject.toml").exists():
            (self.folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")

    def suite(self, tests: int) -> dict[str, Any]:
        """Run so many tests and return `wall`, the process's seconds, and those of each test but
        the first and the last, which set up and tear down what is for the whole session:
        `isolation` (its set-up and tear-down) and `whole`. Raises Failed."""
        wall, found, told = self._run(["tests/test_shop.py"], tests, self.contender.counts)
        failed = [test for test in found if "failed" in test]
        if failed or len(found) != tests:
            raise Failed(f"{len(failed)} of {len(found)} tests failed: {told}" if found else told)
        counted = found[1:-1]
        return {
            "wall": wall,
            "isolation": [test["setup"] + test["teardown"] for test in counted],
            "whole": [test["whole"] for test in counted],
        }

    def probe(self) -> dict[str, dict[str, Any]]:
        """Run the probes, and one test of the suite so that all is compiled; return what they wrote
        down. Raises Failed."""
        results = self.folder / "probed.json"
        _, found, told = self._run(["tests/test_probes.py", "tests/test_shop.py"], 1, counted=False)
        try:
            probed: dict[str, dict[str, Any]] = json.loads(results.read_text())
        except OSError:
            raise Failed(told) from None
        for test in found:
            for name, noted in probed.items():
                if f"[{name}-" in test["name"] and test.get("failed") in ("setup", "teardown"):
                    noted["isolation failed"] = test["failed"]
        return probed

    def _run(
        self, paths: list[str], tests: int, counted: bool
    ) -> tuple[float, list[dict[str, Any]], str]:
        """Return the seconds that the process took, what `timing` wrote, and the last of what it
        printed."""
        results = self.folder / "results.json"
        results.unlink(missing_ok=True)
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(_STRANGE) and key != "DATABASE_URL"
        }
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        environ |= {
            **self.place.environ,
            **self.contender.environ,
            "PEERS_NAME": f"{self.place.token}_{next(_NUMBERS)}",
            "PEERS_TESTS": str(tests),
            "PEERS_COUNTED": str(int(counted)),
            "PEERS_RESULTS": str(results),
            "PEERS_PROBED": str(self.folder / "probed.json"),
            "PYTHONPATH": os.pathsep.join(
                [str(self.folder), *([str(ROOT)] if self.contender.environment.checkout else [])]
            ),
        }
        command = [
            self.installed.python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "timing",
            *self.contender.options,
            *paths,
        ]
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=environ,
                capture_output=True,
                text=True,
                timeout=self.patience,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"it did not end within {self.patience:g} s") from None
        wall = time.perf_counter() - started
        found = json.loads(results.read_text()) if results.exists() else []
        return wall, found, self._told(done.stdout + done.stderr)

    def _told(self, output: str) -> str:
        """Return the last of what a process printed, without the server's password."""
        text = output.strip()[-1500:]
        return text.replace(self.place.password, "…") if self.place.password else text
