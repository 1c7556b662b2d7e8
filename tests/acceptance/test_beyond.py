"""Nothing but the clone is written: what strangers tried besides handles and forgotten fixtures."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from psycopg import sql

from dbclone.server.server import Server

from ..conftest import Project
from .conftest import Developer

MODELS = """
import json, os
from peewee import *

DEV = json.loads(os.environ["DEV"])
db = PostgresqlDatabase(DEV.pop("dbname"), prefer_psycopg3=True, **DEV)

class User(Model):
    name = CharField()
    class Meta:
        database = db

MODELS = [User]
"""
ALCHEMY = """
import json, os
from sqlalchemy import URL, create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

DEV = json.loads(os.environ["DEV"])
query = {"host": DEV["host"], "port": DEV["port"]}
URL = URL.create("postgresql+psycopg", DEV["user"], database=DEV["dbname"], query=query)

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
"""


@pytest.mark.parametrize("statement", ["DROP DATABASE IF EXISTS {}", "-- now\nDROP DATABASE {}"])
def test_what_reaches_beyond_the_clone_is_not_run_by_the_next_run(
    project: Project, developer: Developer, statement: str
) -> None:
    """A limit of the sandbox is remembered, and the test commits for real from then on; not so
    where that would reach somebody else's database."""
    text = statement.format(f'"{developer.name}"')
    project.write(
        models=MODELS,
        test_a=f"from models import db\ndef test_it(dbclone):\n    db.execute_sql({text!r})\n",
    )
    for _ in range(2):
        done = project.run("pytest", "-q", **developer.environ)
        assert "dbclone.SandboxLimit: DROP DATABASE in a test" in done.stdout
        assert "1 failed" in done.stdout
        assert 'reset="truncate"' not in done.stdout
        assert "from the next run on" not in done.stdout


@pytest.mark.parametrize(
    "command", [("prepare",), ("verify",), ("doctor", "--no-measures"), ("url",)]
)
def test_a_module_that_connects_when_a_command_imports_it_is_refused(
    project: Project, developer: Developer, command: tuple[str, ...]
) -> None:
    project.write(models=MODELS + "db.connect()\nUser.create(name='written at import')\n")
    done = project.run("dbclone", *command, **developer.environ)
    assert "models:db is used while dbclone imports the project" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["atexit", "thread"])
def test_the_handle_leads_nowhere_when_the_tests_have_ended(
    project: Project, developer: Developer, how: str
) -> None:
    late = {
        "atexit": "atexit.register(write)",
        "thread": "threading.Thread(target=lambda: (time.sleep(1.5), write())).start()",
    }
    project.write(
        models=MODELS,
        test_a=f"""
        import atexit, threading, time
        from models import User
        def write():
            User.create(name="late")
        def test_it(dbclone):
            write()
            {late[how]}
        """,
    )
    done = project.run("pytest", "-q", **developer.environ)
    assert "1 passed" in done.stdout
    assert "is used after the tests have ended" in done.stderr


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_sessionmaker_may_get_its_engine_in_a_fixture(
    project: Project, developer: Developer, workers: str
) -> None:
    project.configure(schema="models:Base.metadata", bind="models:Session")
    project.write(
        models=ALCHEMY + "Session = sessionmaker()\n",
        test_a="""
        import pytest
        from models import *

        @pytest.fixture(params=["function", "session"])
        def configured(request):
            Session.configure(bind=create_engine(URL))

        @pytest.mark.parametrize("reset", [
            pytest.param(r, marks=pytest.mark.dbclone(reset=r)) for r in ("auto", "rollback", "truncate", "clone")
        ])
        def test_it(dbclone, configured, reset):
            with Session() as session:
                assert session.scalar(text("SELECT current_database()")).startswith("dbclone_")
                session.add(User(name="ann"))
                session.commit()
                assert session.scalar(select(func.count()).select_from(User)) == 1
        """,
    )
    done = project.pytest("-q", "-n", workers, "-p", "no:randomly", **developer.environ)
    assert done.stdout.splitlines()[-1].startswith("8 passed"), done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "env FOO=1 alembic upgrade head",
        "sh -c 'alembic upgrade head'",
        "FOO=1 python manage.py migrate",
        "env PGDATABASE=postgres psql -f s.sql",
        "DATABASE_URL=postgresql://h/d python build.py",
    ],
)
def test_a_command_that_is_led_away_or_hides_a_tool_is_refused(project: Project, line: str) -> None:
    project.configure(schema=line, bind=None, inputs=["s.sql"])
    (project.folder / "s.sql").write_text("CREATE TABLE item (id int)")
    done = project.run("dbclone", "prepare")
    assert done.returncode in (1, 2)
    assert "is hidden in another command" in done.stderr or "database being built" in done.stderr
    assert "HINT" in done.stderr


def test_what_a_build_leaves_on_a_server_of_somebodys_own_is_told(
    project: Project, server: Server
) -> None:
    """No reading of SQL finds what is put together while it runs."""
    role = f"hidden_{uuid.uuid4().hex[:8]}"
    project.configure(schema="schema.sql", bind=None, url=server.dsn.url)
    (project.folder / "schema.sql").write_text(
        f"CREATE TABLE item (id int); DO $$ BEGIN EXECUTE 'CREATE ' || 'ROLE {role}'; END $$;"
    )
    environ: dict[str, Any] = {}
    try:
        done = project.run("dbclone", "prepare", **environ)
        assert (
            f"appeared on the server during the build, where no reset undoes it: role {role}"
            in (done.stdout + done.stderr)
        )
    finally:
        server.connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("schema", ["alembic", "manage.py migrate"])
def test_who_only_looks_runs_no_migrations_that_a_repository_names(
    project: Project, schema: str
) -> None:
    project.configure(schema=schema, bind=None)
    touch = f"open({str(project.folder / 'ran')!r}, 'w')\n"
    project.write(manage=touch, **{"alembic/env": touch, "alembic/versions/a": "revision = 'a'"})
    (project.folder / "alembic.ini").write_text("[alembic]\nscript_location = alembic\n")
    done = project.run("dbclone", "url")
    assert "this command runs no program that a repository names" in done.stderr
    assert not (project.folder / "ran").exists()
