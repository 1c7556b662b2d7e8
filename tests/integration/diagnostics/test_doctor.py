"""`python -m dbclone doctor`: what it finds on a real server, what it did not look at, and that it
leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.databases import ddl
from dbclone.databases.naming import Mark, build_name
from dbclone.diagnostics.checks import file_system, on_file_system
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server

from ...conftest import Project
from ...faults.stops import until

CHECKS = {
    "server", "version", "rights", "connections", "durability", "template", "role", "collations", "background workers", "leftovers",
    "strangers", "interrupted drops", "what outlives sessions", "lock folder", "orphaned files", "speed",
}  # fmt: skip


def doctor(
    project: Project, *words: str, **environ: str
) -> tuple[int, dict[str, dict[str, str]], dict[str, Any]]:
    """Run doctor; return its exit status, its checks by name and all facts."""
    done = project.run("dbclone", "doctor", "--json", *words, timeout=120, **environ)
    assert done.stdout, done.stderr
    facts = json.loads(done.stdout)
    return done.returncode, {check["name"]: check for check in facts["checks"]}, facts


def quick(project: Project, *words: str, **environ: str) -> dict[str, dict[str, str]]:
    """Return the checks that need no measuring, of a server on which nothing will fail."""
    status, checks, _ = doctor(project, "--no-measures", *words, **environ)
    assert status == 0
    return checks


@contextlib.contextmanager
def database(server: Server, comment: str | None = None) -> Iterator[str]:
    """A database with a name of our shape, with our mark or another comment; dropped at the end."""
    name = build_name("doctor")
    ddl.create(server, name, "template0", Mark.make("build", "doctor", server.facts.system))
    if comment is not None:
        server.connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(name), sql.Literal(comment)
            )
        )
    try:
        yield name
    finally:
        server.connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name))
        )


def test_a_sound_server_is_measured_and_nothing_is_left(project: Project, server: Server) -> None:
    """S27: version and age of the server are shown."""
    project.run("dbclone", "prepare")
    before = project.databases(server)
    status, checks, facts = doctor(project)
    assert status == 0
    assert set(checks) == CHECKS | {"foreign tables"}
    assert {check["verdict"] for check in checks.values()} <= {"ok", "slow", "warning"}
    assert checks["version"]["why"].startswith(f"PostgreSQL {server.version}, running for ")
    assert checks["template"]["why"].startswith(before[0])
    measures = facts["measures"]
    times = [v for k, v in measures.items() if isinstance(v, float) and k != "durability_per_run"]
    assert len(times) == 9
    assert all(0 < seconds < 60 for seconds in times)
    assert measures["source"] == before[0]
    assert facts["advice"] == ["durability costs nothing here: fsync is off"]
    assert project.databases(server) == before


def test_what_it_did_not_look_at_is_said(project: Project) -> None:
    status, checks, facts = doctor(project, "--no-measures", "--schema", "")
    assert status == 0
    assert {name for name, check in checks.items() if check["verdict"] == "not checked"} >= {
        "template",
        "speed",
    }
    assert "measures" not in facts
    assert set(checks) == CHECKS
    status, checks, facts = doctor(project, "--url", "postgresql://u:s3cr3t@127.0.0.1:1/x")
    assert (status, checks["server"]["verdict"], checks["everything else"]["verdict"]) == (
        1,
        "fails",
        "not checked",
    )
    assert "s3cr3t" not in json.dumps(facts)


def test_a_password_is_never_shown(project: Project, server: Server, role: Dsn) -> None:
    url = role.replace(password="s3cr3t-word", dbname="postgres").url
    for words in (("--json",), ()):
        done = project.run("dbclone", "doctor", *words, "--url", url, timeout=120)
        assert done.returncode == 0, done.stdout
        assert "s3cr3t" not in done.stdout + done.stderr
        assert role.get("user") in done.stdout


def test_a_role_that_may_not_create_databases_gets_the_command_that_lets_it(
    project: Project, server: Server, role: Dsn
) -> None:
    user = sql.Identifier(role.get("user"))
    server.connection.execute(sql.SQL("ALTER ROLE {} NOCREATEDB").format(user))
    status, checks, _ = doctor(project, "--url", role.url)
    assert (status, checks["server"]["verdict"]) == (1, "fails")
    assert (
        checks["server"]["to_do"]
        == f'Run as a superuser: ALTER ROLE "{role.get("user")}" CREATEDB;'
    )
    server.connection.execute(sql.SQL("ALTER ROLE {} CREATEDB CONNECTION LIMIT 10").format(user))
    with database(server) as marked:
        status, checks, _ = doctor(project, "--url", role.url, "--no-measures", "--workers", "1")
    assert marked not in checks["strangers"]["why"], "it is another role's, and has its mark"
    assert (status, checks["connections"]["verdict"]) == (0, "ok")
    assert checks["background workers"]["verdict"] == "not checked"
    assert "GRANT pg_read_all_settings" in checks["background workers"]["to_do"]
    status, checks, _ = doctor(project, "--url", role.url, "--no-measures", "--workers", "4")
    assert (status, checks["connections"]["verdict"]) == (1, "fails")
    assert "Use -n 1," in checks["connections"]["to_do"]


def test_what_dead_runs_left_and_what_is_not_ours_is_told_apart(
    project: Project, server: Server
) -> None:
    """E13: a mark that somebody edited makes a database a stranger, which is named and never
    touched."""
    with (
        database(server) as dead,
        database(server, "{ not our mark") as strange,
        database(server) as broken,
    ):
        server.connection.execute(
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [broken]
        )
        checks = quick(project)
        server.connection.execute(
            "UPDATE pg_database SET datconnlimit = -1 WHERE datname = %s", [broken]
        )
    assert dead in checks["leftovers"]["why"]
    assert " MB: " in checks["leftovers"]["why"]
    assert strange not in checks["leftovers"]["why"]
    assert f"{strange}: its comment is not dbclone's" in checks["strangers"]["why"]
    assert checks["interrupted drops"]["why"] == broken
    assert {
        checks[name]["verdict"] for name in ("leftovers", "strangers", "interrupted drops")
    } == {"warning"}
    checks = quick(project)  # other tests of this process may have strangers of their own
    assert strange not in checks["strangers"]["why"]
    assert checks["interrupted drops"]["verdict"] == "ok"


@pytest.mark.slow
def test_a_template_that_is_stale_or_has_another_collation_is_named_and_built_anew(
    project: Project, server: Server
) -> None:
    """A13: decided by versions in the catalogue, never by a message; template1, which is not
    copied, only gets a warning."""
    assert "not there yet" in quick(project)["template"]["why"]
    project.run("dbclone", "prepare")
    (name,) = project.databases(server)
    assert quick(project)["collations"]["verdict"] == (
        "ok" if server.facts.major >= 15 else "not checked"
    )
    if server.facts.major >= 15:
        stale = "UPDATE pg_database SET datcollversion = '0.1' WHERE datname = %s"
        server.connection.execute(stale, [name])
        checks = quick(project)
        assert (checks["template"]["verdict"], checks["collations"]["verdict"]) == ("slow", "slow")
        assert f"{name}: its collation had version 0.1" in checks["collations"]["why"]
        with pytest.raises(psycopg.errors.InternalError_):
            server.connection.execute(
                sql.SQL("CREATE DATABASE x TEMPLATE {}").format(sql.Identifier(name))
            )
        done = project.run("dbclone", "prepare")
        assert "its collation had version 0.1" in done.stdout
        assert quick(project)["template"]["verdict"] == "ok"
        ((before,),) = server.fetch(
            "SELECT datcollversion FROM pg_database WHERE datname = 'template1'"
        )
        try:
            server.connection.execute(stale, ["template1"])
            checks = quick(project)
            assert "template1" in checks["collations"]["why"]
            assert checks["collations"]["verdict"] == "warning"
            assert "ALTER" not in checks["collations"]["to_do"], (
                "no hint writes to what is not ours"
            )
            assert project.run("dbclone", "prepare", "--rebuild").returncode == 0
            server.connection.execute(
                "UPDATE pg_database SET datcollversion = %s WHERE datname = 'template1'", [before]
            )
            assert quick(project)["collations"]["verdict"] == "ok"
        finally:
            server.connection.execute(
                "UPDATE pg_database SET datcollversion = %s WHERE datname = 'template1'", [before]
            )
    found = ddl.find(server, name)
    assert found is not None
    assert found.mark is not None
    ddl.comment(
        server, name, replace(found.mark, manifest={**found.mark.manifest, "extension gone": "1"})
    )
    checks = quick(project)
    assert (checks["template"]["verdict"], checks["template"]["why"]) == (
        "slow",
        f"{name} is stale: extension gone was 1, is gone",
    )


@pytest.mark.parametrize(
    "asked",
    [
        'CREATE EXTENSION IF NOT EXISTS "no-such"',
        "CREATE COLLATION c (provider = icu, locale = 'de')",
    ],
)
def test_what_the_build_of_postgres_lacks_is_said_before_anything_is_built(
    project: Project, server: Server, asked: str
) -> None:
    """A15: which feature, asked for where, and what to do; before the first statement of the schema
    has run."""
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(f"SELECT pg_sleep(600);\n-- now\n{asked};\n")
    if "icu" in asked and server.fetch(
        "SELECT FROM pg_collation WHERE collname ~ '-x-icu$' LIMIT 1"
    ):
        pytest.skip("this build has ICU")
    status, checks, _ = doctor(project, "--no-measures")
    assert (status, checks["template"]["verdict"]) == (1, "fails")
    done = project.run("dbclone", "prepare", timeout=60)
    assert done.returncode == 1
    assert "extension 'no-such'" in done.stderr or "collations of ICU" in done.stderr
    assert "schema.sql:2" in done.stderr or "schema.sql:3" in done.stderr
    assert "set url to a server that has it" in done.stderr
    assert project.databases(server) == []


def test_foreign_tables_in_the_template_are_named(project: Project, server: Server) -> None:
    project.configure(schema="foreign:make", bind=None)
    project.write(
        foreign="""
        import psycopg

        def make(url):
            with psycopg.connect(url) as connection:
                connection.execute("CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw")
                connection.execute("CREATE FOREIGN TABLE far (x int) SERVER s")
        """
    )
    project.run("dbclone", "prepare")
    status, checks, _ = doctor(project)
    assert (status, checks["foreign tables"]["verdict"]) == (0, "warning")
    assert checks["foreign tables"]["why"].startswith("public.far:") or checks["foreign tables"][
        "why"
    ].startswith("far:")


def test_interrupted_while_it_measures_it_drops_its_scratch_databases(
    project: Project, server: Server
) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(
            server.settings.clone_limit
        ):  # all places to copy in are taken: it waits for one
            stack.enter_context(server.leases.lock(f"clone slot {number}", 30))
        running = project.start("dbclone", "doctor")
        until(lambda: bool(project.databases(server)))
        os.kill(running.pid, signal.SIGINT)
        shown, _ = running.communicate(timeout=60)
        assert running.returncode == 130, shown
        assert project.databases(server) == []


def test_orphaned_files_are_counted_where_they_can_be_read(
    project: Project, server: Server
) -> None:
    assert server.embedded is not None
    base = server.embedded.cluster.data / "base"
    if not os.access(base, os.R_OK | os.W_OK):
        pytest.skip("the private server's folder belongs to another user")
    lost = base / "4294967"
    lost.mkdir()
    try:
        (lost / "1").write_bytes(b"x" * 2**20)
        assert quick(project)["orphaned files"]["verdict"] == "ok", (
            "it may be of a database that is being made"
        )
        os.utime(lost, (1, 1))
        found = quick(project)["orphaned files"]
        assert found["verdict"] == "warning"
        assert found["why"].startswith("1 folders of no database in ")
        assert "1.0 MB" in found["why"]
    finally:
        shutil.rmtree(lost)


MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw shared:7 - nfs4 server:/export/home rw,vers=4.2
31 30 8:2 / /home/ann/a\040b rw - xfs /dev/sdb1 rw
40 22 0:50 / /mnt rw - ext4 /dev/sdc1 rw
41 40 0:51 / /mnt rw - fuse.sshfs far:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x", "ext4"),
        ("/home/ann/.cache", "nfs4"),
        ("/home/ann/a b/c", "xfs"),
        ("/homely", "ext4"),
        ("/mnt/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_innermost_and_last_mount(
    path: str, kind: str
) -> None:
    assert file_system(path, MOUNTS) == kind


def test_a_lock_folder_that_other_machines_share_is_warned_of(project: Project) -> None:
    """E14: without a network file system here, the mounts are made up; that builds stay correct
    without file locks is A4's."""
    assert on_file_system("/home/ann/.cache/dbclone/locks", MOUNTS).verdict == "warning"
    assert "nfs4" in on_file_system("/home/ann/.cache/dbclone/locks", MOUNTS).why
    assert on_file_system("/var/cache", MOUNTS).verdict == "ok"
    assert on_file_system("/var/cache", "").verdict == "not checked"
    real = quick(project)["lock folder"]
    if Path("/proc/self/mountinfo").exists():
        assert real["verdict"] in ("ok", "warning")
