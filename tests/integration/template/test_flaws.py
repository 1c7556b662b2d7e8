"""Templates of ours that are not good enough any more: replaced under the same name, and why says
what was wrong."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.databases import ddl
from dbclone.errors import TemplateError
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ...conftest import Project
from ...faults.stops import until


@pytest.fixture
def shop_project(project: Project) -> Project:
    """Its schema wants an extension."""
    return project.sql("CREATE EXTENSION citext; CREATE TABLE item (name citext);")


def ensure(server: Server) -> Template:
    return Template.ensure(server, handles.load(server.settings)[0])


def alter(server: Server, statement: str, name: str) -> None:
    server.connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def test_the_mark_tells_the_extensions_and_a_new_default_version_builds_anew(
    project: Project, project_server: Server
) -> None:
    """The fingerprint is known before the build, the extensions after it; so the mark is compared
    with what the server has now."""
    first = ensure(project_server)
    mark = first.database.mark
    assert mark is not None
    ((version,),) = project_server.fetch(
        "SELECT default_version FROM pg_available_extensions WHERE name = 'citext'"
    )
    assert mark.manifest["extension citext"] == version
    ddl.comment(
        project_server,
        first.name,
        replace(mark, manifest={**mark.manifest, "extension citext": "0.9"}),
    )
    second = ensure(project_server)
    assert (second.built, second.why) == (True, (f"extension citext was 0.9, is {version}",))
    assert not ensure(project_server).built
    assert project.databases(project_server) == [second.name]


def test_an_extension_that_the_schema_wants_in_an_older_version_is_not_built_again_and_again(
    project: Project, project_server: Server
) -> None:
    (project.folder / "schema.sql").write_text("CREATE EXTENSION citext VERSION '1.4';")
    assert ensure(project_server).built
    again = ensure(project_server)
    assert not again.built
    assert again.database.mark is not None
    assert again.database.mark.manifest["extension citext"].startswith("1.4, default ")


def test_a_template_that_is_not_sealed_any_more_is_replaced(
    project: Project, project_server: Server
) -> None:
    """As when a prune was killed between its two statements, or somebody opened the template to
    write to it."""
    for statement in (
        "ALTER DATABASE {} IS_TEMPLATE false",
        "ALTER DATABASE {} ALLOW_CONNECTIONS true",
    ):
        before = ensure(project_server)
        alter(project_server, statement, before.name)
        after = ensure(project_server)
        assert (after.built, after.why) == (True, ("the template was not sealed any more",))
        assert after.database.oid != before.database.oid
        assert project.databases(project_server) == [after.name]


def test_a_template_whose_drop_was_interrupted_is_replaced(
    project: Project, project_server: Server
) -> None:
    """B13: such a database can only be dropped."""
    before = ensure(project_server)
    alter(project_server, "ALTER DATABASE {} IS_TEMPLATE false", before.name)
    project_server.fetch(
        "UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s RETURNING 1", [before.name]
    )
    after = ensure(project_server)
    assert (after.built, after.why) == (True, ("a DROP of the template was interrupted",))
    assert project.databases(project_server) == [after.name]


def test_an_opened_template_with_somebody_in_it_is_an_error_that_says_so(
    project: Project, project_server: Server
) -> None:
    before = ensure(project_server)
    alter(project_server, "ALTER DATABASE {} ALLOW_CONNECTIONS true", before.name)
    with project_server.connect(before.name, "visitor"):
        with pytest.raises(TemplateError, match="cannot be replaced: somebody is connected to it"):
            ensure(project_server)
    assert project.databases(project_server) == [before.name]


def test_unlogged_rows_that_a_crash_of_the_server_took_are_noticed_and_built_again(
    project: Project, tmp_path: Path, options: dict[str, str]
) -> None:
    """A16: the sealed template looks complete and is not. On a server of its own, because all of it
    goes down."""
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(
        "CREATE UNLOGGED TABLE cache AS SELECT generate_series(1, 1000) AS id;"
    )
    settings = load(project.folder, {**options, "cache_dir": str(tmp_path / "cache")}, {})
    with Server.open(settings) as first:
        assert first.embedded is not None
        home, cluster = first.embedded.home, first.embedded.cluster
        try:
            before = ensure(first)
            first.connection.execute(
                "CHECKPOINT"
            )  # a private server does not wait for its log: the newest commits would be lost
            crash(first)
            with Server.open(settings) as second:
                found = ensure(second)
                assert not found.built, found.why
                with found.clone() as clone, clone.connect() as connection:
                    assert connection.execute("SELECT count(*) FROM cache").fetchone() == (1000,)
                assert (found.name, found.database.oid == before.database.oid) == (
                    before.name,
                    False,
                )
                assert project.databases(second) == [found.name]
        finally:
            cluster.stop()
            if (
                first.embedded._process is not None
            ):  # our child, which nobody waited for, because the connection broke
                first.embedded._process.wait()
            shutil.rmtree(home, ignore_errors=True)


def crash(server: Server) -> None:
    """Kill one backend, which makes the server end all others and recover; wait until it admits us
    again."""
    with psycopg.connect(server.dsn.url) as victim:
        os.kill(victim.info.backend_pid, signal.SIGKILL)

    def noticed() -> bool:
        try:
            server.fetch("SELECT 1")
        except psycopg.OperationalError:
            return True
        return False

    def recovered() -> bool:
        try:
            psycopg.connect(server.dsn.url).close()
        except psycopg.OperationalError:
            return False
        return True

    until(noticed)
    until(recovered)
