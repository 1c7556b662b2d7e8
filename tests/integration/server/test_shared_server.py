"""A good guest on a server that others use too: it takes little, changes no settings, stores no
data, and leaves in time."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import dbclone
from dbclone.adapters import handles
from dbclone.clone import clone as owned
from dbclone.databases import ddl
from dbclone.databases.prune import prune
from dbclone.errors import BuildFailed
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template

from ...conftest import Project
from ...faults.stops import until
from ...shop import cloned

HOUSE = Path(dbclone.__file__).parent
SCHEMA = "CREATE TABLE item (id int PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'customer-c4n4ry');"


def test_administrative_connections_never_begin_a_transaction_by_themselves(
    server: Server, tmp_path: Path
) -> None:
    """B21: CREATE and DROP DATABASE cannot run in one."""
    with server.connect("postgres", "test") as connection:
        for each in (server.connection, connection):
            assert each.autocommit
            each.execute("SELECT 1")
            assert each.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_clone_is_dropped_when_the_session_ends_and_in_no_test_s_time(
    project: Project, server: Server
) -> None:
    """B14: not even in the teardown of the last test, where pytest ends fixtures of the whole
    session."""
    project.write(
        conftest="""
        import os, psycopg

        def pytest_runtest_logreport(report):
            if report.when == "teardown":
                with psycopg.connect(os.environ["DATABASE_URL"]) as connection, open("there", "a") as file:
                    print(connection.info.dbname, file=file)
        """,
        test_a="def test_a(dbclone): pass\ndef test_b(dbclone): pass\n",
    )
    done = project.pytest("-q", "-n", "0")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert project.clones(server) == []
    there = (project.folder / "there").read_text().split()
    assert len(there) == 2, "it could be entered after each test"


def test_a_drop_that_the_server_is_slow_with_is_left_to_prune(
    server: Server,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B14: as one that waits for a checkpoint of gigabytes; here, for somebody who holds a lock on
    the database for ever."""
    monkeypatch.setattr(owned, "_GOODBYE", 0.2)
    with server.connect("postgres", "holder") as holder:
        with cloned(server, settings, tmp_path, SCHEMA) as clone:
            with holder.transaction(force_rollback=True):
                holder.execute(
                    sql.SQL("COMMENT ON DATABASE {} IS 'locked'").format(sql.Identifier(clone.name))
                )
                clone.drop()
                assert "left to the next run: " in caplog.text
                assert "canceling statement due to statement timeout" in caplog.text
                assert any("could not be dropped" in note for note in clone.report.notes)
            assert ddl.find(server, clone.name) is not None
            assert server.fetch("SHOW statement_timeout") == [("10min",)]
            assert clone.name in {
                database.name for database, _ in prune(server, clone.template.name)
            }


def test_nothing_is_set_on_a_server_or_role_or_in_another_database(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn
) -> None:
    """S22: settings for throw-away data are on the command line of a server of our own, and nowhere
    else."""
    query = """SELECT (SELECT array_agg(f ORDER BY f::text) FROM pg_file_settings f)::text,
        (SELECT array_agg(s ORDER BY s::text) FROM pg_db_role_setting s)::text,
        (SELECT array_agg((rolname, rolconfig, rolsuper, rolcreatedb) ORDER BY rolname) FROM pg_roles)::text,
        (SELECT array_agg((datname, datacl, datconnlimit) ORDER BY oid) FROM pg_database WHERE datname !~ '^dbclone_')::text"""
    before = server.fetch(query)
    for who in (server.dsn, role):
        with (
            Server.open(settings, who) as opened,
            cloned(opened, settings, tmp_path, SCHEMA) as clone,
        ):
            for reset in ("rollback", "truncate", "clone", "drop", "clone"):
                with clone.isolated(reset, "test") as isolation:
                    isolation.execute("INSERT INTO item VALUES (2)")
    assert server.fetch(query) == before


def sources() -> list[tuple[Path, str]]:
    return [
        (path, path.read_text(encoding="utf-8"))
        for path in sorted(HOUSE.rglob("*.py"))
        if "demo" not in path.parts
    ]


def test_no_source_alters_the_system_or_takes_data_for_code() -> None:
    """S20, S22: what comes from a server or a file is JSON or text; an object is imported by name,
    as conftest is."""
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, (
                    f"{path.name}:{node.lineno}"
                )
            if isinstance(node, ast.Import):
                assert not forbidden.intersection(name.name for name in node.names), path.name
            if isinstance(node, ast.ImportFrom):
                assert node.module not in forbidden, path.name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"\s*ALTER\s+SYSTEM", node.value, re.IGNORECASE), (
                    f"{path.name}:{node.lineno}"
                )


@pytest.mark.parametrize(
    "line",
    ["\\! touch FILE", "\\copy item FROM PROGRAM 'touch FILE'", "\\o |touch FILE", "\\i other.sql"],
)
def test_a_dump_runs_nothing_on_this_machine(
    line: str, server: Server, settings: Settings, tmp_path: Path
) -> None:
    """S19: SQL files are sent to the server statement by statement; commands of psql among them are
    refused by line."""
    touched = tmp_path / "touched"
    (tmp_path / "other.sql").write_text("SELECT 1;")
    schema = f"CREATE TABLE item (id text);\n{line.replace('FILE', str(touched))}\n"
    with (
        pytest.raises(BuildFailed, match=r"schema\.sql:2: .* is a command of psql, not SQL"),
        cloned(server, settings, tmp_path, schema),
    ):
        pass
    assert not touched.exists()


def test_copy_data_that_looks_like_commands_are_data(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """S19."""
    touched = tmp_path / "touched"
    schema = f"CREATE TABLE item (line text);\nCOPY item FROM stdin;\n\\\\! touch {touched}\nDROP TABLE item;\n\\.\n"
    with cloned(server, settings, tmp_path, schema) as clone, clone.connect() as connection:
        expected = [("DROP TABLE item;",), (f"\\! touch {touched}",)]
        assert sorted(connection.execute("SELECT line FROM item").fetchall()) == expected
    assert not touched.exists()


def test_a_mark_holds_digests_and_no_data(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """S21: everybody on a server can read the comment of a database."""
    with cloned(server, settings, tmp_path, SCHEMA) as clone:
        for name in (clone.name, clone.template.name):
            found = ddl.find(server, name)
            assert found is not None
            assert found.comment is not None
            assert "c4n4ry" not in found.comment
            assert "CREATE TABLE" not in found.comment


def test_a_worker_has_two_connections_of_its_own_and_a_third_for_warm_clones(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """S26: administration and control, and the pool's; whatever resets its tests use, and however
    many they are."""
    query = "SELECT application_name FROM pg_stat_activity WHERE application_name ~ %s"
    pattern = f"^dbclone (admin|control|pool|baseline|check|drop|build)[^:]*:{os.getpid()}$"
    with (
        Server.open(settings) as opened,
        cloned(opened, settings, tmp_path, SCHEMA, clone_limit=2) as clone,
    ):
        until(
            lambda: (
                not server.fetch(
                    "SELECT FROM pg_stat_activity WHERE application_name ~ 'dbclone build'"
                )
            )
        )
        others = len(server.fetch(query, [pattern])) - 1
        project = f"^dbclone_{clone.server.settings.project}_"
        most, bases = 0, 0
        for reset in (
            "rollback",
            "truncate",
            "clone",
            "clone",
            "truncate",
            "clone",
            "rollback",
            "clone",
        ):
            with clone.isolated(reset, "test") as isolation:
                isolation.execute("INSERT INTO item VALUES (2, NULL)")
                most = max(most, len(server.fetch(query, [pattern])) - others)
                bases = max(
                    bases,
                    len(server.fetch("SELECT FROM pg_database WHERE datname ~ %s", [project])),
                )
        assert 2 <= most <= 3
        assert bases <= 2 + 2 * 2 + 1, (
            "template, clone, twice the limit of the pool, and a sibling of a moment"
        )


def test_what_is_older_than_agreed_is_dropped_whoever_asks(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """S21: templates hold rows; they go when nobody used them for retain_days, and at once on
    demand."""
    with Server.open(settings) as opened:
        (tmp_path / "schema.sql").write_text(SCHEMA)
        opened.settings = replace(
            settings, name="retained", root=tmp_path, schema=("schema.sql",), retain_days=0.0
        )
        template = Template.ensure(opened, handles.load(opened.settings)[0])
        opened.leases.release(template.name, shared=True)
        assert template.name in {database.name for database, _ in prune(opened)}
