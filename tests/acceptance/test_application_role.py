"""The application connects as its own role: what production would refuse or hide, a test refuses or
hides, and resets see all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.server.dsn import Dsn
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server

from ..conftest import Project
from ..private import own_server

pytestmark = pytest.mark.slow

# Every way in which the rights of a role show. Nobody grants the sequence of `audit` or the use of
# the schema `inside`.
SCHEMA = """
CREATE TABLE notes (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant text NOT NULL, body text);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE notes FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON notes USING (tenant = current_setting('app.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO {role};
INSERT INTO notes (tenant, body) VALUES ('seeded', 's1'), ('a', 'a0');
CREATE TABLE audit (id serial PRIMARY KEY, what text, secret text DEFAULT 'hidden');
GRANT INSERT, SELECT (what) ON audit TO {role};
CREATE SCHEMA inside; CREATE TABLE inside.item (v int); GRANT SELECT ON inside.item TO {role};
CREATE TABLE reports (v int);
CREATE TABLE mine (v int); ALTER TABLE mine OWNER TO {role};
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role};
CREATE TABLE later (v int);
CREATE FUNCTION report(n int) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO reports VALUES (n)';
DO $$ BEGIN EXECUTE format('ALTER ROLE {role} IN DATABASE %I SET app.tenant = ''a''', current_database()); END $$;
"""
APPS = {
    "sqlalchemy": """
        from sqlalchemy import create_engine, text
        handle = create_engine("postgresql+psycopg://{user}@nowhere.invalid/shop")
        def run(query):
            with handle.begin() as connection:
                done = connection.execute(text(query))
                return [tuple(row) for row in done] if done.returns_rows else []
        """,
    "sqlalchemy-psycopg2": """
        from sqlalchemy import create_engine, text
        handle = create_engine("postgresql+psycopg2://nowhere.invalid/shop", connect_args={{"user": "{user}"}})
        def run(query):
            with handle.begin() as connection:
                done = connection.execute(text(query))
                return [tuple(row) for row in done] if done.returns_rows else []
        """,
    "peewee": """
        from peewee import PostgresqlDatabase
        handle = PostgresqlDatabase("shop", user="{user}", host="nowhere.invalid", prefer_psycopg3=True)
        def run(query):
            done = handle.execute_sql(query)
            return list(done.fetchall()) if done.description else []
        """,
    "peewee-psycopg2": """
        from peewee import PostgresqlDatabase
        handle = PostgresqlDatabase("postgresql://{user}@nowhere.invalid/shop")
        def run(query):
            done = handle.execute_sql(query)
            return list(done.fetchall()) if done.description else []
        """,
    "pool": """
        from psycopg_pool import ConnectionPool
        handle = ConnectionPool("postgresql://{user}@nowhere.invalid/shop", open=False, min_size=1)
        def run(query):
            if handle.closed:
                handle.open()
            with handle.connection() as connection:
                done = connection.execute(query)
                return done.fetchall() if done.description else []
        """,
    "environment": """
        import os, psycopg
        URL = os.environ["DATABASE_URL"]  # as an application reads it when it is imported
        def run(query):
            with psycopg.connect(URL) as connection:
                done = connection.execute(query)
                return done.fetchall() if done.description else []
        """,
}
TESTS = """
    import os, subprocess, sys
    import psycopg, pytest
    from app import run

    def refused(query):
        try:
            run(query)
        except Exception as error:
            found = error
            while found is not None:
                if "permission denied" in str(found) or "must be owner" in str(found):
                    return True
                found = found.__cause__ or getattr(found, "orig", None)
            raise
        return False

    def asked(reset):
        return pytest.param(reset, marks=pytest.mark.dbclone(reset=reset))

    @pytest.mark.parametrize("reset", [*map(asked, ["auto", "auto", "clone", "drop", "auto", "truncate"])])
    def test_rights(reset, dbclone):
        assert dbclone.reset == ("truncate" if reset == "auto" else reset)
        assert run("SELECT session_user::text, current_user::text") == [("{role}", "{role}")]
        # what the test before left is gone, also what the application cannot see of it
        everything = "SELECT (SELECT array_agg(body ORDER BY id) FROM notes), (SELECT count(*) FROM audit),"
        everything += " (SELECT count(*) FROM reports), (SELECT count(*) FROM mine)"
        assert dbclone.execute(everything).fetchone() == (["s1", "a0"], 0, 0, 0)
        # the fixture arranges for every tenant, the application sees its own, whose name is a
        # setting of the role
        dbclone.execute("INSERT INTO notes (tenant, body) VALUES ('a', 'a1'), ('b', 'b1')")
        assert run("SELECT body FROM notes ORDER BY id") == [("a0",), ("a1",)]
        run("UPDATE notes SET body = body || '!'")
        run("INSERT INTO notes (tenant, body) VALUES ('a', 'a2')")
        assert dbclone.execute("SELECT array_agg(body ORDER BY id) FROM notes").fetchone() == (["s1", "a0!", "a1!", "b1", "a2"],)
        # what was never granted
        assert refused("INSERT INTO audit (what) VALUES ('x')")  # the sequence
        assert refused("SELECT secret FROM audit")  # the column
        run("INSERT INTO audit (id, what) VALUES (7, 'x')")
        assert run("SELECT what FROM audit") == [("x",)]
        assert refused("SELECT * FROM inside.item")  # the schema
        assert refused("INSERT INTO reports VALUES (1)")
        run("SELECT report(1)")  # by way of a function of the owner's
        assert refused("INSERT INTO later VALUES (1)")
        assert run("SELECT * FROM later") == []
        assert refused("ALTER TABLE reports ADD w int")
        assert refused("TRUNCATE notes")
        run("INSERT INTO mine VALUES (1)")
        if reset in ("clone", "drop"):
            run("ALTER TABLE mine ADD w int")
        # others who are the application
        assert dbclone.url == os.environ["DATABASE_URL"]
        child = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).execute('SELECT user').fetchone()[0])"
        assert subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.strip() == "{role}"
        assert dbclone.connect(user="{role}").execute("SELECT count(*) FROM notes").fetchone() == (3,)
        assert dbclone.execute("SELECT count(*) FROM notes").fetchone() == (5,)
    """


@pytest.fixture
def name() -> str:
    """The name of a role that no other test uses: a server's roles belong to all its databases, and
    none is ever dropped."""
    return f"app_{uuid.uuid4().hex[:8]}"


def application(
    project: Project,
    name: str,
    kind: str,
    user: str = "dev",
    schema: str = SCHEMA,
    **settings: object,
) -> None:
    """Write a project of one kind, whose handle connects as `user` in production."""
    project.write(app=APPS[kind].format(user=user))
    (project.folder / "schema.sql").write_text(schema.replace("{role}", name))
    bind = None if kind == "environment" else "app:handle"
    project.configure(schema="schema.sql", bind=bind, **settings)


@pytest.mark.parametrize("kind", APPS)
def test_rights_are_those_of_the_role_whatever_the_handle(
    project: Project, name: str, kind: str
) -> None:
    """Item 4 of issue 12: row-level security, grants, ownership, settings of the role; and each
    reset undoes what it cannot see."""
    application(project, name, kind, role=name)
    project.write(test_a=TESTS.replace("{role}", name))
    done = project.pytest("-q")
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert "row-level security" not in done.stdout
    assert "replaced after" not in done.stdout


def test_rights_under_xdist_and_in_warm_clones(project: Project, server: Server, name: str) -> None:
    application(project, name, "sqlalchemy", role=name)
    project.write(test_a=TESTS.replace("{role}", name))
    done = project.run("dbclone", "prepare", "--workers", "2")
    assert "2 warm clones made" in done.stdout, done.stderr
    done = project.pytest("-q", "-n", "2")
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert "appeared on the server" not in done.stdout
    assert project.clones(server) == []


@pytest.mark.parametrize("kind", ["sqlalchemy", "peewee-psycopg2", "pool"])
def test_in_a_sandbox_everybody_is_the_role(project: Project, name: str, kind: str) -> None:
    """One session: the fixture too. Sequences that the role may not set go back all the same; a
    seed that it cannot see stays."""
    application(project, name, kind, role=name, reset="rollback", reset_sequences=True)
    project.write(
        test_a="""
        import pytest
        from app import run

        @pytest.fixture(scope="module")
        def noted(dbclone_module):
            run("INSERT INTO notes (tenant, body) VALUES ('a', 'of the module')")

        @pytest.mark.parametrize("n", range(3))
        def test_a(n, dbclone):
            assert dbclone.reset == "rollback"
            assert run("SELECT current_user::text") == [("{name}",)]
            assert dbclone.execute("SELECT current_user").fetchone() == ("{name}",)
            assert run("SELECT id, body FROM notes") == [(2, "a0")]
            run("INSERT INTO notes (tenant, body) VALUES ('a', 'a1')")
            assert dbclone.execute("SELECT id, body FROM notes ORDER BY id").fetchall() == [(2, "a0"), (3, "a1")]
            with pytest.raises(Exception, match="permission denied"):
                run("SELECT setval('notes_id_seq', 1)")

        @pytest.mark.parametrize("n", range(2))
        def test_b(noted, n, dbclone):
            assert run("SELECT body FROM notes ORDER BY id") == [("a0",), ("of the module",)]
            run("DELETE FROM notes")
        """.replace("{name}", name)
    )
    project.write(
        test_z="""
        import pytest

        @pytest.mark.dbclone(reset="truncate")
        def test_nothing_is_left(dbclone):
            assert dbclone.execute("SELECT array_agg(body ORDER BY id) FROM notes").fetchone() == (["s1", "a0"],)
        """
    )
    done = project.pytest("-q")
    assert "6 passed" in done.stdout, done.stdout + done.stderr
    assert "replaced after" not in done.stdout


WHO = """
    from app import run

    def test_who(dbclone):
        assert run("SELECT session_user::text") == [("{who}",)]
        assert dbclone.execute("SELECT session_user::text").fetchone() == ("{builder}",)
    """


def test_without_the_setting_it_is_the_handles_user_whom_the_schema_knows(
    project: Project, server: Server, name: str
) -> None:
    """cases/row_security_of_the_apps_role: nobody wrote a setting, production's engine says it."""
    server.connection.execute(f"CREATE ROLE {name}".encode())
    for kind in set(APPS) - {"environment", "sqlalchemy-psycopg2", "peewee-psycopg2"}:
        application(project, name, kind, user=name)
        project.write(test_a=TESTS.replace("{role}", name))
        done = project.pytest("-q")
        assert "6 passed" in done.stdout, done.stdout + done.stderr
        assert (
            f"the application connects as {name}, as its handle does and the schema expects"
            in done.stdout
        )


def test_where_nobody_is_bound_doctor_and_the_summary_warn(project: Project, name: str) -> None:
    """Once for all workers, and not to who has set a role."""
    application(
        project,
        name,
        "sqlalchemy",
        user="shopkeeper",
        schema="CREATE TABLE first (); ALTER TABLE first ENABLE ROW LEVEL SECURITY;",
    )
    project.write(test_a="def test_a(dbclone): pass\ndef test_b(dbclone): pass\n")
    why = "row-level security on public.first does not bind role postgres, as whom the tests run"
    done = project.pytest("-q", "-n", "2")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count(f'{why}: set role = "shopkeeper"') == 1
    said = project.run("dbclone", "doctor", "--no-measures").stdout
    assert f'warning     role: {why}\n            Set role = "shopkeeper".\n' in said
    done = project.pytest("-q", DBCLONE_ROLE=name)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "row-level security" not in done.stdout


def test_a_missing_role_on_a_server_of_others_is_said_once_and_not_made(
    project: Project, server: Server, name: str
) -> None:
    application(
        project,
        name,
        "sqlalchemy",
        schema="CREATE TABLE item (v int);",
        role=name,
        url=server.dsn.url,
    )
    project.write(test_a="def test_a(dbclone): pass\ndef test_b(dbclone): pass\n")
    done = project.pytest("-q", "-n", "2")
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert text.count(f"SettingsError: role = '{name}': there is no such role on ") == 1
    assert f'CREATE ROLE "{name}" LOGIN PASSWORD' in text
    assert f"{project.folder / 'pyproject.toml'} [tool.dbclone]" in text
    assert server.fetch("SELECT FROM pg_roles WHERE rolname = %s", [name]) == []
    done = project.run("dbclone", "doctor", "--no-measures")
    assert done.returncode == 1
    assert "there is no such role" in done.stdout


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]) -> Iterator[Dsn]:
    """A server of a developer's, as its superuser: the roles called web_… need their password,
    which is `open`."""
    with own_server(tmp_path_factory.mktemp("guarded"), options) as settings:
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        made = located.cluster
        made.init()
        rules = made.data / "pg_hba.conf"
        rules.write_text("local all web_app,web_other scram-sha-256\n" + rules.read_text())
        process = made.start(60)
        with psycopg.connect(located.dsn.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE web_app LOGIN PASSWORD 'open sesame'")
            connection.execute("CREATE ROLE web_other LOGIN PASSWORD 'another'")
            connection.execute("CREATE ROLE web_group")
            connection.execute("CREATE ROLE builder LOGIN CREATEDB")
        yield located.dsn
        made.stop()
        process.wait()


GRANTED = "CREATE TABLE item (v int); GRANT SELECT, INSERT ON item TO web_app;"


def test_on_a_server_of_others_the_password_is_the_handles_own_or_libpqs(
    project: Project, guarded: Dsn, tmp_path: Path
) -> None:
    """Also as a builder who may not act as the application; who is told by doctor what that costs."""
    url = guarded.replace(user="builder").url
    application(
        project,
        "",
        "sqlalchemy",
        user="web_app:open%20sesame",
        schema=GRANTED,
        role="web_app",
        url=url,
    )
    project.write(test_a=WHO.format(who="web_app", builder="builder"))
    done = project.pytest("-q")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "sesame" not in done.stdout + done.stderr
    assert (
        'GRANT "web_app" TO "builder";' in project.run("dbclone", "doctor", "--no-measures").stdout
    )
    application(
        project, "", "sqlalchemy", user="web_app:wrong", schema=GRANTED, role="web_app", url=url
    )
    done = project.pytest("-q")
    assert "PermissionMissing: the application's role 'web_app' cannot connect to " in done.stdout
    assert "HINT:  Its password is the handle's own" in done.stdout
    application(project, "", "environment", schema=GRANTED, role="web_app", url=url)
    (tmp_path / "pgpass").write_text("*:*:*:web_app:open sesame\n")
    (tmp_path / "pgpass").chmod(0o600)
    done = project.pytest("-q", PGPASSFILE=str(tmp_path / "pgpass"))
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_on_a_server_of_others_a_handles_user_counts_if_its_password_opens(
    project: Project, guarded: Dsn
) -> None:
    """And if the builder may end its sessions; else the builder stays the application, as ever, and
    the summary says why."""
    application(
        project, "", "sqlalchemy", user="web_app:open%20sesame", schema=GRANTED, url=guarded.url
    )
    project.write(test_a=WHO.format(who="web_app", builder="postgres"))
    done = project.pytest("-q")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    application(project, "", "sqlalchemy", user="web_app:wrong", schema=GRANTED, url=guarded.url)
    project.write(test_a=WHO.format(who="postgres", builder="postgres"))
    done = project.pytest("-q")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert (
        "the application's own role web_app cannot connect, so it connects as postgres: "
        in done.stdout
    )
    url = guarded.replace(user="builder").url
    application(project, "", "sqlalchemy", user="web_app:open%20sesame", schema=GRANTED, url=url)
    project.write(test_a=WHO.format(who="builder", builder="builder"))
    done = project.pytest("-q")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("role", "schema", "hint"),
    [
        ("web_group", "CREATE TABLE item (v int);", 'ALTER ROLE "web_group" LOGIN;'),
        (
            "web_app",
            "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC',"
            " current_database()); END $$;",
            "GRANT CONNECT ON DATABASE %I TO %I', current_database(), 'web_app')",
        ),
    ],
)
def test_a_role_that_may_not_enter_is_said_with_what_lets_it_in(
    project: Project, guarded: Dsn, role: str, schema: str, hint: str
) -> None:
    application(
        project,
        "",
        "sqlalchemy",
        user="web_app:open%20sesame",
        schema=schema,
        role=role,
        url=guarded.url,
    )
    project.write(test_a="def test_a(dbclone): pass\n")
    done = project.pytest("-q")
    assert f"the application's role {role!r} cannot connect to " in done.stdout, (
        done.stdout + done.stderr
    )
    assert hint in done.stdout


def test_libpqs_variables_lead_the_application_in_as_its_role(
    project: Project, guarded: Dsn, tmp_path: Path
) -> None:
    """PGUSER says who builds, until there is a clone; then who the application is."""
    application(project, "", "environment", schema=GRANTED, role="web_app")
    (tmp_path / "pgpass").write_text("*:*:*:web_app:open sesame\n")
    (tmp_path / "pgpass").chmod(0o600)
    project.write(
        test_a="""
        import psycopg

        def test_who(dbclone):
            with psycopg.connect("") as connection:
                assert connection.execute("SELECT session_user::text, current_database()").fetchone() == ("web_app", dbclone.name)
            assert dbclone.execute("SELECT session_user::text").fetchone() == ("builder",)
        """
    )
    environ = {
        "PGHOST": guarded.get("host"),
        "PGUSER": "builder",
        "PGPASSFILE": str(tmp_path / "pgpass"),
    }
    for workers in ("0", "2"):
        done = project.pytest("-q", "-n", workers, timeout=120, **environ)
        assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_what_the_role_left_is_kept_put_aside_and_ended_like_anybodys(
    project: Project, server: Server, name: str
) -> None:
    """Snapshots, failed tests that are kept, sessions in the way of a reset, tables that no reset
    touches."""
    application(
        project, name, "sqlalchemy", role=name, on_leak="terminate", lock_timeout=0.3, keep=["mine"]
    )
    project.write(
        test_a="""
        from app import run
        LEFT = []

        def test_snapshots(dbclone):
            run("INSERT INTO notes (tenant, body) VALUES ('a', 'a1')")
            dbclone.snapshot("one")
            run("INSERT INTO notes (tenant, body) VALUES ('a', 'a2')")
            dbclone.restore("one")
            assert run("SELECT body FROM notes ORDER BY id") == [("a0",), ("a1",)]
            run("INSERT INTO mine VALUES (1)")

        def test_a_session_that_stays(dbclone):
            assert run("SELECT body FROM notes") == [("a0",)]
            LEFT.append(__import__("psycopg").connect(dbclone.url))
            LEFT[0].execute("INSERT INTO notes (tenant, body) VALUES ('a', 'held')")

        def test_fails(dbclone):
            assert run("SELECT v FROM mine") == [(1,)]
            run("INSERT INTO notes (tenant, body) VALUES ('a', 'of the failed')")
            assert False

        def test_goes_on(dbclone):
            assert run("SELECT body FROM notes") == [("a0",)]
            assert run("SELECT current_user::text") == [("{name}",)]
        """.replace("{name}", name)
    )
    done = project.pytest("-q", "--dbclone-keep-failed")
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert "ended a session in the way of a reset: Session" in done.stdout
    assert f"of user {name}" in done.stdout
    (kept,) = [database for database in project.clones(server) if "_k_" in database]
    with psycopg.connect(server.database(kept).url) as connection:
        assert connection.execute("SELECT body FROM notes ORDER BY id DESC LIMIT 1").fetchone() == (
            "of the failed",
        )
    assert "dropped" in project.run("dbclone", "prune", "--all").stdout
    connection = server.connection
    assert connection.execute(
        sql.SQL("SELECT count(*) FROM pg_stat_activity WHERE usename = %s"), [name]
    ).fetchone() == (0,)
