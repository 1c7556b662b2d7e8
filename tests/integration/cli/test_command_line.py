"""`python -m dbclone …` as a user types it: what it prints, what it does, and how it exits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbclone.cli.main import _parser, main
from dbclone.server.server import Server

from ...conftest import Project

COMMANDS = ("prepare", "status", "prune", "url", "psql", "server", "verify", "doctor", "demo")


def facts(project: Project, *words: str, **environ: str) -> dict[str, object]:
    """Run a command with --json and return what it prints, which must be JSON and nothing else."""
    done = project.run("dbclone", *words, "--json", timeout=120, **environ)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_prepare_builds_once_says_why_it_builds_again_and_rebuilds_on_demand(
    project: Project, server: Server
) -> None:
    first, second, third = (
        facts(project, "prepare"),
        facts(project, "prepare"),
        facts(project, "prepare", "--rebuild"),
    )
    assert [first["built"], second["built"], third["built"]] == [True, False, True]
    assert first["template"] == second["template"] == third["template"]
    models = (project.folder / "models.py").read_text()
    (project.folder / "models.py").write_text(
        models.replace("text = TextField()", "text = TextField(null=True)")
    )
    fourth = facts(project, "prepare")
    assert (fourth["built"], fourth["why"]) == (True, ["model models.Post changed"])
    assert len(project.databases(server)) == 2
    text = project.run("dbclone", "prepare").stdout
    assert text.startswith(f"template {fourth['template']} reused in ")


@pytest.mark.slow
def test_workers_claim_the_warm_clones_that_prepare_left(project: Project, server: Server) -> None:
    assert facts(project, "prepare", "--workers", "2")["warm_clones_made"] == 2
    assert facts(project, "prepare", "--workers", "2")["warm_clones_made"] == 0
    assert len(project.clones(server)) == 2
    project.write(
        test_a="import pytest\n@pytest.mark.parametrize('i', range(8))\ndef test_it(dbclone, i):"
        " pass\n"
    )
    done = project.pytest("-n", "1", "-o", "log_cli=true", "--log-cli-level=INFO")
    assert "8 passed" in done.stdout
    assert len(project.clones(server)) == 1


@pytest.mark.slow
def test_a_long_build_says_what_it_does_also_within_one_step(project: Project) -> None:
    project.configure(schema="slow.sql", bind=None)
    (project.folder / "slow.sql").write_text("CREATE TABLE t ();\nSELECT pg_sleep(3.2);\n")
    done = project.run("dbclone", "prepare")
    assert done.returncode == 0
    assert "dbclone: slow.sql:2: SELECT pg_sleep(3.2) (1 s)" in done.stderr
    assert "dbclone: slow.sql:2: SELECT pg_sleep(3.2) (2 s)" in done.stderr
    project.write(test_a="def test_it(dbclone): pass\n")
    for workers in ("0", "2"):
        run = project.pytest("--dbclone-rebuild", "-n", workers)
        assert "dbclone: slow.sql:2: SELECT pg_sleep(3.2) (2 s)" in run.stdout, (
            run.stdout + run.stderr
        )


def test_status_shows_templates_and_what_they_were_built_from(project: Project) -> None:
    made = facts(project, "prepare")["template"]
    databases = facts(project, "status")["databases"]
    assert isinstance(databases, list)
    (row,) = [row for row in databases if row["name"] == made]
    assert row["kind"] == "template"
    assert row["bytes"] > 1_000_000
    assert "model models.User" in row["manifest"]
    shown = project.run("dbclone", "status", "--manifest").stdout
    assert str(made) in shown
    assert "model models.User: " in shown


def test_prune_only_says_on_a_dry_run_and_spares_what_is_in_use(
    project: Project, server: Server
) -> None:
    made = str(facts(project, "prepare")["template"])
    assert made in project.run("dbclone", "prune", "--all", "--dry-run").stdout
    assert project.databases(server) == [made]
    assert made not in project.run("dbclone", "prune").stdout
    assert project.databases(server) == [made]
    assert f"dropped {made}" in project.run("dbclone", "prune", "--all").stdout
    assert project.databases(server) == []


def test_url_leads_to_a_scratch_clone_that_stays(project: Project, server: Server) -> None:
    found = facts(project, "url")
    with psycopg.connect(str(found["url"])) as connection:
        assert connection.execute('SELECT count(*) FROM "user"').fetchone() == (0,)
    assert facts(project, "url", str(found["name"]))["url"] == found["url"]
    project.run("dbclone", "prune")
    assert str(found["name"]) in project.databases(server)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "words", [("status",), ("doctor", "--no-measures"), ("url",), ("url", "postgres")]
)
def test_who_only_looks_runs_no_program_that_a_repository_names(
    project: Project, words: tuple[str, ...], tmp_path: Path
) -> None:
    """Somebody may look at what they have just cloned. What they say themselves is their own."""
    ran = tmp_path / "ran"
    own: dict[str, Any] = {"DBCLONE_CACHE_DIR": str(tmp_path / "cache")}
    for name in ("postgres", "initdb", "pg_config", "psql"):
        program(
            project.folder / "bin" / name,
            f"echo {name} >> {ran}; echo 'postgres (PostgreSQL) 18.1'",
        )
    project.environ.pop("DBCLONE_BINARIES", None)
    project.configure(schema=f"touch {ran}", bind=None, inputs=[], binaries="bin")
    done = project.run("dbclone", *words, **own)
    assert not ran.exists()
    if words[0] == "status":
        assert "is not running" in done.stdout
    else:
        assert "starts no program that a repository names" in done.stdout + done.stderr
        assert "python -m dbclone server start" in done.stdout + done.stderr
    project.run("dbclone", "status", **own, DBCLONE_BINARIES="bin")
    assert "postgres" in ran.read_text()


def test_url_does_not_build_with_a_command_that_a_repository_names(
    project: Project, server: Server, tmp_path: Path
) -> None:
    program(project.folder / "bin" / "build", f"echo build >> {tmp_path}/ran")
    (project.folder / "schema.sql").write_text("CREATE TABLE item (id int)")
    project.configure(schema=["bin/build", "schema.sql"], bind=None, inputs=[])
    done = project.run("dbclone", "url")
    assert not (tmp_path / "ran").exists()
    assert "runs no program that a repository names" in done.stderr
    assert "python -m dbclone prepare" in done.stderr
    project.run("dbclone", "prepare")
    assert (tmp_path / "ran").read_text() == "build\n"
    assert project.databases(server)
    assert project.run("dbclone", "url").stdout.startswith("postgresql://")
    assert (tmp_path / "ran").read_text() == "build\n"


@pytest.mark.skipif(shutil.which("psql") is None, reason="no psql on this machine")
def test_psql_opens_a_scratch_clone_and_drops_it(project: Project, server: Server) -> None:
    done = project.run("dbclone", "psql", "--", "-XAtc", "SELECT current_database()")
    assert done.stdout.startswith(f"dbclone_{project.name}_"), done.stderr
    assert project.clones(server) == []


@pytest.mark.parametrize("name", ["postgres", "dbclone_nothing_here", "x'; DROP TABLE y; --"])
def test_a_name_that_is_not_dbclones_is_refused(project: Project, name: str) -> None:
    done = project.run("dbclone", "url", name)
    assert done.returncode == 1
    assert done.stderr.startswith("dbclone.NotOwned: ")
    assert done.stdout == ""


@pytest.mark.slow
def test_the_private_server_starts_stays_and_stops(project: Project, tmp_path: Path) -> None:
    own = {"DBCLONE_CACHE_DIR": str(tmp_path / "cache")}
    try:
        assert project.run("dbclone", "server", "status", timeout=120, **own).returncode == 1
        started = facts(project, "server", "start", **own)
        assert started["running"] is True
        assert facts(project, "server", "start", **own)["pid"] == started["pid"]
        project.run("dbclone", "prepare", timeout=120, **own)
        assert facts(project, "server", "status", **own)["pid"] == started["pid"], (
            "a run must not stop a server that was started by hand"
        )
        with psycopg.connect(str(started["url"])) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    finally:
        stopped = facts(project, "server", "stop", **own)
        shutil.rmtree(Path(str(stopped["folder"])).parent, ignore_errors=True)
    assert stopped["running"] is False


@pytest.mark.parametrize(
    ("words", "status", "texts"),
    [
        (
            ["prepare", "--schema", "nowhere.models:X"],
            2,
            ["there is no module 'nowhere'", "DETAIL:", "HINT:"],
        ),
        (["prepare", "--schema", "models:MODLS"], 2, ["Did you mean models:MODELS?"]),
        (["prepare", "--reset", "rolback"], 2, ["invalid choice"]),
        (
            ["prepare", "--clone-limit", "many"],
            2,
            ["clone_limit = 'many' is not a whole number", "the option --clone-limit"],
        ),
        (["prepare", "--workers", "-1"], 2, ["not a number from 0 to 1000"]),
        (
            ["prepare", "--url", "postgresql://u:s3cr3t@127.0.0.1:1/x"],
            2,
            ["no server answers at postgresql://u:***@127.0.0.1:1"],
        ),
        (["prepare", "--url", "postgresql://u:s3cr3t@h@x/y"], 2, ["not a usable PostgreSQL URL"]),
        (["prepare", "--schema", "*.sql"], 2, ["no file matches '*.sql'"]),
        (
            ["prepare", "--schema", "no-such-program --now", "--inputs", "models.py"],
            2,
            ["cannot be started"],
        ),
        (["prepare", "--binaries", "/nonexistent"], 2, ["none was found to start", "/nonexistent"]),
        (["server", "start", "--url", "postgresql://h/x"], 2, ["uses a running server"]),
        (["status", "--", "x"], 2, ["takes nothing after --"]),
    ],
)
def test_bad_input_gets_a_clear_error_without_a_traceback_or_a_password(
    project: Project, words: list[str], status: int, texts: list[str]
) -> None:
    done = project.run("dbclone", *words)
    assert done.returncode == status, done.stderr
    for text in texts:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--json" in shown
    parsers = next(action.choices for action in _parser()._actions if action.choices)
    assert set(parsers or ()) == set(COMMANDS)
