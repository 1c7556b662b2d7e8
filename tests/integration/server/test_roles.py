"""Roles without superuser: everything works for one with CREATEDB; what it lacks is named, with the
statement that gives it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.databases import ddl
from dbclone.errors import PermissionMissing
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings, load
from dbclone.template.template import Template

from ...conftest import Project
from ...faults.stops import ended
from ...shop import cloned

Run = Callable[[str], object]
SUITE = """
    import pytest
    from models import Post, User, db

    def check(dbclone, reset):
        assert dbclone.reset == reset
        assert (User.select().count(), Post.select().count()) == (0, 0)
        ann = User.create(name="ann")
        Post.create(user=ann, text="hello")
        with db.atomic():
            User.create(name="bob")
        owner = "SELECT nspowner = (SELECT oid FROM pg_roles WHERE rolname = current_user) FROM pg_namespace"
        assert dbclone.execute(owner + " WHERE nspname = 'public'").fetchone() == (False,)
        may = "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert dbclone.execute(may).fetchone() == (False, True)
"""


@pytest.fixture
def run(server: Server) -> Run:
    """Run one statement as the superuser."""
    return lambda statement: server.connection.execute(statement.encode())


@pytest.fixture
def humble(server: Server, run: Run) -> Iterator[Dsn]:
    """A role that may log in and nothing else."""
    name = f"humble_{uuid.uuid4().hex[:8]}"
    run(f"CREATE ROLE {name} LOGIN")
    yield server.dsn.replace(user=name)
    run(f"DROP ROLE {name}")


def test_every_reset_works_for_a_role_with_createdb_and_nothing_else(
    project: Project, server: Server, role: Dsn
) -> None:
    """Promise 13: real tests of an application, rolled back, put back, in fresh clones, dropped and
    built again."""
    project.configure(url=role.url)
    tests = "".join(
        f"""
    @pytest.mark.dbclone(reset="{reset}")
    @pytest.mark.parametrize("n", range(3))
    def test_{reset}(dbclone, n):
        check(dbclone, "{reset}")
"""
        for reset in ("rollback", "truncate", "clone", "drop")
    )
    project.write(test_a=SUITE + tests)
    done = project.pytest("-q", "-n", "0")
    assert "12 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout
    assert "replaced after" not in done.stdout
    assert len(project.databases(server)) == 1
    assert project.clones(server) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_role_without_createdb_is_told_the_statement_that_gives_it(
    workers: str, project: Project, server: Server, humble: Dsn, run: Run
) -> None:
    """Once, in a run of pytest, and without a traceback; what it says is what helps."""
    project.configure(url=humble.url)
    project.write(test_a="def test_a(dbclone): pass\n")
    name = humble.get("user")
    done = project.pytest("-q", "-n", workers)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "1 passed" not in said
    assert f"role '{name}' may not create databases" in said
    statement = f'ALTER ROLE "{name}" CREATEDB;'
    assert f"HINT:  Run as a superuser: {statement}" in said
    assert "Traceback" not in said
    run(statement)
    with Server.open(load(project.folder, {"url": humble.url}, {})) as opened:
        assert opened.facts.createdb


SCHEMA = """
CREATE SCHEMA ours;
CREATE TABLE ours.item (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
INSERT INTO ours.item (name) VALUES ('a'), ('b');
CREATE SCHEMA theirs AUTHORIZATION {other};
SET ROLE {other};
CREATE TABLE theirs.item (id int PRIMARY KEY);
INSERT INTO theirs.item VALUES (1);
RESET ROLE;
"""


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_tables_that_the_schema_gave_to_another_role_are_reset_too(
    reset: str, server: Server, settings: Settings, tmp_path: Path, humble: Dsn, role: Dsn, run: Run
) -> None:
    """B18: the application acts as a role whose privileges ours does not inherit, so that what it
    may not put back is copied."""
    ours, other = role.get("user"), humble.get("user")
    run(f"ALTER ROLE {ours} NOINHERIT")
    run(f"GRANT {other} TO {ours}" + (" WITH INHERIT FALSE" if server.facts.major >= 16 else ""))
    with (
        Server.open(settings, role) as plain,
        cloned(plain, settings, tmp_path, SCHEMA.format(other=other)) as clone,
    ):
        for _ in range(3):
            with clone.isolated(reset, "test") as isolation:
                assert isolation.execute("SELECT count(*) FROM ours.item").fetchone() == (2,)
                isolation.execute(f"SET ROLE {other}".encode())
                assert isolation.execute("SELECT array_agg(id) FROM theirs.item").fetchone() == (
                    [1],
                )
                isolation.execute("INSERT INTO theirs.item VALUES (2)")
                isolation.execute("RESET ROLE")
                isolation.execute("INSERT INTO ours.item (name) VALUES ('c')")
        if reset == "drop":
            assert any(
                "not everything could be dropped: must be owner of" in note
                for note in clone.report.notes
            )


def test_two_roles_of_one_project_do_not_meet(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn, run: Run
) -> None:
    """B18: who copied the other's template would own the database, and not the tables in it."""
    with cloned(
        server,
        settings,
        tmp_path,
        SCHEMA.format(other="CURRENT_USER").replace("SET ROLE CURRENT_USER", "SELECT 1"),
    ) as first:
        with Server.open(replace(first.server.settings, url=role.url)) as plain:
            schema = handles.load(plain.settings)[0]
            template = Template.ensure(plain, schema)
            assert template.built
            assert template.name != first.template.name
            with template.clone() as clone:
                for _ in range(2):
                    with clone.isolated("truncate") as isolation:
                        isolation.execute("INSERT INTO theirs.item VALUES (2)")
                with clone.connect() as connection:
                    query = "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname IN ('ours', 'theirs')"
                    assert connection.execute(query).fetchall() == [(role.get("user"),)]


def test_a_template_that_may_not_be_copied_any_more_is_said_with_what_allows_it(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn, run: Run
) -> None:
    """B19: a superuser has made our template a plain database of somebody else."""
    with (
        Server.open(settings, role) as plain,
        cloned(plain, settings, tmp_path, "CREATE TABLE item ();") as clone,
    ):
        name = clone.template.name
        template = Template(plain, clone.template, clone.schema)  # type: ignore[arg-type]
        run(f"ALTER DATABASE {name} IS_TEMPLATE false")
        run(f"ALTER DATABASE {name} OWNER TO postgres")
        with pytest.raises(PermissionMissing, match=f'may not copy "{name}"') as caught:
            template.clone("gw1")
        statement = f'ALTER DATABASE "{name}" OWNER TO "{role.get("user")}";'
        assert caught.value.hint == f"Run as a superuser: {statement}"
        run(statement)
        with template.clone("gw1") as again:
            assert again.name != clone.name
        run(f"ALTER ROLE {role.get('user')} NOCREATEDB")
        with pytest.raises(
            PermissionMissing, match=r"may not create databases .* any more"
        ) as caught:
            template.clone("gw2")
        assert caught.value.hint == f'Run as a superuser: ALTER ROLE "{role.get("user")}" CREATEDB;'


@pytest.mark.parametrize("who", ["superuser", "other"])
def test_a_session_that_we_may_not_end_is_named_with_the_grant_and_its_database_left_to_prune(
    who: str,
    server: Server,
    settings: Settings,
    tmp_path: Path,
    humble: Dsn,
    role: Dsn,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B10: at the end of a clone; the run does not fail for it."""
    ours, other = role.get("user"), humble.get("user")
    with Server.open(settings, role) as plain, contextlib.ExitStack() as stack:
        with cloned(plain, settings, tmp_path, "CREATE TABLE item ();") as clone:
            dsn = (server.dsn if who == "superuser" else humble).replace(dbname=clone.name)
            held = stack.enter_context(
                psycopg.connect(dsn.url, application_name="a tool", autocommit=True)
            )
        found = ddl.find(plain, clone.name)
        assert found is not None
        held.execute("SELECT 1")
        said = caplog.text
        assert (
            f"Session {held.info.backend_pid} of role \"{held.info.user}\" calls itself 'a tool'"
            in said
        )
        if who == "other":
            assert f'GRANT "{other}" TO "{ours}";' in said
            run(f'GRANT "{other}" TO "{ours}"')
            ddl.drop(plain, found, force=True)
        else:
            assert "Only a superuser may end a superuser's session" in said
            pid = held.info.backend_pid
            held.close()
            ended(server, pid)
            ddl.drop(plain, found)
        assert ddl.find(plain, clone.name) is None


@pytest.mark.parametrize(
    "statement", ["CREATE EXTENSION pg_stat_statements", "SET session_preload_libraries = 'x'"]
)
def test_a_schema_that_needs_more_is_told_what(
    statement: str, server: Server, settings: Settings, tmp_path: Path, role: Dsn
) -> None:
    """In the server's own words, which say the role or privilege; no template is left."""
    before = server.fetch("SELECT datname FROM pg_database ORDER BY 1")
    schema = f"CREATE TABLE item (line text);\n{statement};"
    with (
        Server.open(settings, role) as plain,
        pytest.raises(Exception, match=r"permission denied|must be superuser") as caught,
        cloned(plain, settings, tmp_path, schema),
    ):
        pass
    assert "schema.sql" in str(caught.value)
    assert f"role {role.get('user')!r} what it lacks" in str(caught.value)
    assert server.fetch("SELECT datname FROM pg_database ORDER BY 1") == before


def test_a_maintenance_database_that_is_closed_to_the_role_is_said_with_its_name(
    server: Server, settings: Settings, role: Dsn, run: Run
) -> None:
    """The GRANT is one that can be run as it stands."""
    name = f"closed_{uuid.uuid4().hex[:8]}"
    run(f"CREATE DATABASE {name}")
    run(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    try:
        with Server.open(settings, role) as plain:
            with pytest.raises(PermissionMissing) as caught:
                plain.connect(name, "test")
            assert (
                caught.value.hint == f'Run as a superuser: GRANT CONNECT ON DATABASE "{name}" TO'
                f' "{role.get("user")}";'
            )
            run(caught.value.hint.partition(": ")[2])
            plain.connect(name, "test").close()
    finally:
        server.connection.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )
