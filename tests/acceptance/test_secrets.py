"""A whole project against a server that wants a password: nothing that its runs print, write or
start shows it."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from dbclone.server.dsn import Dsn
from dbclone.server.private import cluster
from dbclone.server.private.cluster import Cluster
from dbclone.server.private.embedded import Embedded

from .. import developer
from ..conftest import Project
from ..private import own_server

# Whatever surrounds it is spelled otherwise in a URL, in SQL or in JSON; this stays as it is
# everywhere.
CORE = f"s3cr3t0{secrets.token_hex(12)}"
PASSWORD = f"p'\"\\ @/:%{CORE}%%41 {{}}é"

SEED = """
import os, pathlib

def words(where):
    lines = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\\0", b" ").decode(errors="replace"))
        except OSError:
            pass
    pathlib.Path(where).write_text("\\n".join(lines))

def load(url):
    words("words-of-the-seed")
    if os.environ.get("BREAK") == "seed":
        plain = "".join(url)
        raise ValueError(f"bad {plain}", plain)
"""

TESTS = """
import os, logging, psycopg, pytest
from models import User, db
from seeds import words

def test_passes(dbclone):
    words("words-of-a-test")
    logging.getLogger().info("%r %s %r", dbclone, dbclone, dbclone.handle)
    assert User.select().count() == 0

def test_fails_with_all_its_variables(dbclone, dbclone_worker):
    own, isolation, worker, server = dbclone.connection, dbclone, dbclone_worker, dbclone_worker.server
    settings = server.settings
    dsn, url, template, mark, report = server.dsn, dbclone.url, dbclone_worker.template, dbclone_worker.mark, dbclone_worker.report
    assert own is None, "on purpose"

@pytest.mark.dbclone(reset="truncate")
def test_cannot_connect(dbclone):
    dbclone.connect(dbname="nowhere")

@pytest.mark.dbclone(reset="truncate")
def test_cannot_connect_asynchronously(dbclone):
    import asyncio
    asyncio.run(dbclone.aconnect(dbname="nowhere"))

@pytest.mark.dbclone(reset="truncate")
def test_opens_a_server_by_hand_and_is_refused(dbclone, dbclone_worker):
    from dbclone.server.server import Server
    Server.open(dbclone_worker.server.settings, dbclone_worker.server.dsn.replace(user="nobody_there"))

@pytest.mark.dbclone(reset="truncate")
def test_finds_its_database_gone(dbclone, dbclone_worker):
    with psycopg.connect(dbclone_worker.server.database("postgres").url, autocommit=True) as admin:
        admin.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(dbclone.name)))
    dbclone.connect()

def test_goes_on_after_that(dbclone):
    assert User.select().count() == 0

def test_asks_for_a_reset_that_there_is_not(dbclone, dbclone_worker):
    with dbclone_worker.isolated("nonsense"):
        pass

def test_crashes(dbclone):
    if os.environ.get("BREAK") == "worker":
        os._exit(3)

def test_server_error(dbclone):
    dbclone.execute("SELECT %s::int", [os.environ["DATABASE_URL"][:3]])
"""
SOUND = (
    ["prepare", "--workers", "1"],
    ["prepare"],
    ["status", "--manifest"],
    ["prune", "--dry-run"],
    ["prune"],
)
LOUD = [
    "-vv",
    "--showlocals",
    "--tb=long",
    "-o",
    "log_cli=true",
    "-o",
    "log_level=DEBUG",
    "-o",
    "log_file=run.log",
    "-rA",
]


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]
) -> Iterator[tuple[Cluster, Dsn]]:
    """A server that logs every statement and lets the role `canary` in with its password only, and
    where it is for that role."""
    with (
        own_server(tmp_path_factory.mktemp("guarded"), options) as settings,
        pytest.MonkeyPatch.context() as patch,
    ):
        loud = {
            "log_statement": "all",
            "log_connections": "on",
            "log_min_messages": "debug1",
            "log_min_error_statement": "debug1",
        }
        for name, value in loud.items():
            patch.setitem(cluster._THROW_AWAY, name, value)
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        made = located.cluster
        made.init()
        rules = made.data / "pg_hba.conf"
        rules.write_text("local all canary scram-sha-256\n" + rules.read_text())
        process = made.start(60)
        with psycopg.connect(located.dsn.url, autocommit=True) as connection:
            connection.execute("SET log_statement = none")  # the only statement that has to say it
            connection.execute(
                sql.SQL("CREATE ROLE canary LOGIN CREATEDB PASSWORD {}").format(PASSWORD)
            )
        with developer.databases(located.dsn.url):
            yield made, located.dsn.replace(user="canary", password=PASSWORD)
        made.stop()
        process.wait()


@dataclass
class Watched:
    """A project on the guarded server, and everything that was printed in it."""

    project: Project
    cluster: Cluster
    dsn: Dsn
    printed: list[str]

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = self.project.run(
            *words, timeout=120, **{"DBCLONE_URL": str(self.dsn.url), **environ}
        )
        self.printed += [done.stdout, done.stderr]
        return done

    def leaks(self) -> list[str]:
        """Return where the password is: in what was printed, in any file of project, cache and
        server log, or in the server."""
        root = self.project.folder.parent
        files = [
            path
            for folder in (root, self.cluster.folder)
            for path in folder.rglob("*")
            if path.is_file()
        ]
        assert self.project.folder / "words-of-the-seed" in files
        found = [
            f"printed: {line}"
            for text in self.printed
            for line in text.splitlines()
            if CORE in line
        ]
        found += [
            f"in {path}"
            for path in files
            if CORE.encode() in path.read_bytes() or CORE in path.name
        ]
        with psycopg.connect(self.dsn.replace(dbname="postgres").url) as connection:
            told = connection.execute(
                "SELECT description FROM pg_shdescription UNION ALL SELECT query FROM"
                " pg_stat_activity"
            )
            found += [f"server: {text}" for (text,) in told if CORE in text]
        return found


@pytest.fixture
def watched(tmp_path: Path, project: Project, guarded: tuple[Cluster, Dsn]) -> Iterator[Watched]:
    made, dsn = guarded
    project.configure(seed="seeds:load")
    project.write(seeds=SEED, test_all=TESTS)
    project.environ["DBCLONE_CACHE_DIR"] = str(tmp_path / "cache")
    project.environ["PYTHONIOENCODING"] = "utf-8"
    yield Watched(project, made, dsn, [])
    project.run("dbclone", "prune", "--all", DBCLONE_URL=str(dsn.url))


def test_no_run_of_tests_shows_the_password_whatever_fails(watched: Watched) -> None:
    """S7, S8, S9: with all variables, all logs, a junit file, workers of xdist, one that crashes,
    and pytest's cache."""
    said = watched.run("pytest", *LOUD, "--junitxml=alone.xml", "test_all.py").stdout
    assert re.search(r"7 failed, 3 passed", said), said[-3000:]
    words = [
        "--junitxml=workers.xml",
        "-n",
        "2",
        "--full-trace",
        "-k",
        "passes or variables or connect or crashes",
        "test_all.py",
    ]
    said = watched.run("pytest", *LOUD, *words, BREAK="worker").stdout
    assert "crashed while running 'test_all.py::test_crashes'" in said
    assert (watched.project.folder / "workers.xml").stat().st_size > 10_000
    assert watched.leaks() == []


def test_no_run_that_cannot_begin_shows_the_password(watched: Watched) -> None:
    """S7, S8: a seed that raises its URL, a wrong password, nobody there, a malformed URL; with and
    without workers."""
    base = quote(PASSWORD, safe="")
    raised = "seeds:load raised ValueError"
    refused, malformed = (
        str(watched.dsn.replace(password=PASSWORD + "x").url),
        f"postgresql://canary:{base}@h:{CORE}/x",
    )
    for workers, text, url, more in (
        ("2", raised, str(watched.dsn.url), {"BREAK": "seed"}),
        ("0", "the server refused us", refused, {}),
        ("0", "no server answers", f"postgresql://canary:{base}@127.0.0.1:1/x", {}),
        ("0", "Its port is not a number", malformed, {}),
    ):
        said = watched.run(
            "pytest", *LOUD, "--full-trace", "-n", workers, "-k", "passes", DBCLONE_URL=url, **more
        )
        assert text in said.stdout + said.stderr, said.stdout + said.stderr
    assert watched.leaks() == []


COMMANDS = """
import json, os, sys
from dbclone.cli.main import main
for words, environ, status in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update({k: v.replace("CORE", os.environ["CORE"]) for k, v in environ.items()})
    found = main(words)
    os.environ.clear(); os.environ.update(before)
    assert found == status, (words, found)
"""


def test_no_command_shows_the_password(watched: Watched) -> None:
    """S7, S8, S9: `url` excepted, which is asked for it. psql itself looks at the command lines of
    all processes."""
    calls: list[tuple[list[str], dict[str, str], int]] = [
        ([*words, "--json"], {}, 0) for words in SOUND
    ]
    calls += [(words, {}, 0) for words in SOUND]
    calls += [
        (["prepare", "--rebuild"], {"BREAK": "seed"}, 1),
        (["prepare"], {"DBCLONE_URL": "postgresql://canary:CORE@h@x/y"}, 2),
        (["prepare"], {"DBCLONE_CLONE_LIMIT": "postgresql://u:CORE@h"}, 2),
        (["prepare"], {"DBCLONE_URL": "host=h password=CORE port=x"}, 2),
        (["prepare"], {"DBCLONE_SCHEMA": "psql postgresql://u:CORE@h/x"}, 2),
        (["server", "status"], {}, 2),
        (["url", "postgres"], {}, 1),
        (["prune", "--all", "--json"], {}, 0),
    ]
    watched.project.write(commands=COMMANDS)
    done = watched.run("commands", json.dumps(calls), CORE=CORE)
    assert done.returncode == 0, done.stderr
    kept = watched.project.run("dbclone", "url", "--json", DBCLONE_URL=str(watched.dsn.url))
    assert CORE in kept.stdout
    assert CORE not in kept.stderr
    psql = watched.run(
        "dbclone", "psql", "--", "-XAtc", r"\! cat /proc/*/cmdline 2>/dev/null | tr '\0' ' '"
    )
    assert "dbclone psql" in psql.stdout or "no psql" in psql.stderr
    assert watched.leaks() == []
