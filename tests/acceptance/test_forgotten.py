"""The handle of a run that has settings refuses to connect where nothing isolates it, and says by
whom it was asked."""

from __future__ import annotations

import re

import pytest

from ..conftest import Project
from .conftest import Developer
from .test_handles import ALCHEMY, PEEWEE, POOLS, SQLALCHEMY, USER

MODELS = PEEWEE + "db = dev()" + USER % "db"

FORGOTTEN = """
import pytest, unittest
from models import *

def test_plain():
    pass

def test_forgotten():
    User.create(name="x")

def test_swallowed():
    try:
        User.create(name="x")
    except Exception:
        pass

@pytest.fixture
def row():
    return User.create(name="x")

def test_with_a_fixture(row):
    pass

@pytest.fixture
def cleaned():
    yield
    User.delete().execute()

def test_torn_down(cleaned):
    pass

@pytest.fixture(scope="module")
def rows():
    return User.create(name="x")

def test_with_a_shared_fixture(rows):
    pass

class TestOld(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        User.create(name="x")

    def test_of_a_class(self):
        pass

class TestNew:
    def setup_method(self):
        User.create(name="x")

    def test_of_a_method(self):
        pass

def test_by_hand(request):
    request.getfixturevalue("dbclone")
    assert User.select().count() == 0
    User.create(name="x")

def test_isolated(dbclone):
    assert User.select().count() == 0
    User.create(name="x")

@pytest.mark.dbclone(reset="none")
def test_that_wants_none():
    assert db.execute_sql("SELECT current_database()").fetchone()[0].startswith("dbclone_")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("first", ["before", "after"])
def test_who_forgot_to_ask_is_named(
    project: Project, developer: Developer, first: str, workers: str
) -> None:
    """Before there is a clone, when the handle leads to the developer's database, and after."""
    project.write(
        models=MODELS,
        test_b=FORGOTTEN,
        test_a="def test_first(dbclone): pass\n" if first == "after" else "",
    )
    done = project.pytest(
        "-n", workers, "--dist", "loadfile", "-p", "no:randomly", "--tb=short", **developer.environ
    )
    last = done.stdout.splitlines()[-1]
    assert "2 failed" in last, done.stdout
    assert f"{6 if first == 'after' else 5} passed" in last, done.stdout
    assert "5 errors" in last, done.stdout
    for test in (
        "test_forgotten",
        "test_swallowed",
        "test_with_a_fixture",
        "test_torn_down",
        "TestNew::test_of_a_method",
    ):
        assert (
            f"NotIsolated: the database handle models:db is used by test_b.py::{test} without"
            f" isolation" in done.stdout
        )
    assert (
        "fixture 'rows', set up for test_b.py::test_with_a_shared_fixture, without isolation"
        in done.stdout
    )
    assert (
        "setUpClass of TestOld, set up for test_b.py::TestOld::test_of_a_class, without isolation"
        in done.stdout
    )
    assert "set autouse = true" in done.stdout


SHARED = """
import pytest
from models import *

@pytest.fixture(scope="session")
def application(dbclone_worker):
    User.create(name="session")
    yield
    User.delete().where(User.name == "session").execute()

@pytest.fixture(scope="module")
def module(application, dbclone_module):
    User.create(name="module")
    yield
    User.delete().where(User.name == "module").execute()

def test_that_only_binds(application):
    with pytest.raises(NotIsolated, match="test_that_only_binds without isolation"):
        User.create(name="x")

def test_with_a_module(module, dbclone):
    assert User.select().count() == 2
    User.delete().execute()

def test_in_the_layer(module):
    assert User.select().count() == 2

def test_with_nothing():
    with pytest.raises(NotIsolated, match="test_with_nothing without isolation"):
        User.select().count()

def test_that_isolates_by_itself(dbclone_worker):
    with dbclone_worker.isolated("rollback"):
        User.create(name="x")

def test_of_an_open_connection(dbclone_worker):
    User.select().count()
    assert not db.is_closed()

def test_that_finds_it_open():
    assert db.is_closed()
    with pytest.raises(NotIsolated):
        User.select().count()

def test_that_comes_last():
    pass
"""


def test_what_several_tests_share_may_write_where_it_asks_for_the_clone(
    project: Project, developer: Developer
) -> None:
    """Also in its teardown, which falls to a test that asks for nothing. A test that did nothing
    but bind is told, too."""
    project.write(models=MODELS, test_a="from dbclone import NotIsolated\n" + SHARED)
    done = project.pytest("-q", "-p", "no:randomly", **developer.environ)
    # A test that expects the refusal has swallowed it, and is told again.
    assert "3 failed, 5 passed" in done.stdout.splitlines()[-1], done.stdout
    assert (
        len(
            re.findall(
                "^E .*NotIsolated: .*(?:only_binds|with_nothing|finds_it_open) without",
                done.stdout,
                re.M,
            )
        )
        == 3
    )
    assert "DID NOT RAISE" not in done.stdout


@pytest.mark.parametrize(
    ("where", "text", "named"),
    [
        ("models", MODELS + "\ndb.create_tables(MODELS)\n", "test_a.py, while it is collected"),
        (
            "test_a",
            "from models import *\nUser.create(name='x')\ndef test_a(dbclone): pass\n",
            "test_a.py, while it is collected",
        ),
        ("conftest", "from models import *\nUser.create(name='x')\n", "a plugin or a conftest.py"),
        (
            "conftest",
            "from models import *\ndef pytest_sessionstart(session):\n    User.create(name='x')\n",
            "a plugin or a conftest.py",
        ),
    ],
    ids=["the module of the handle", "a test module", "conftest", "a hook"],
)
def test_who_connects_when_it_is_imported_is_named(
    project: Project, developer: Developer, where: str, text: str, named: str
) -> None:
    files = {
        "models": MODELS,
        "test_a": "from models import *\ndef test_a(dbclone): pass\n",
        where: text,
    }
    project.write(**files)
    done = project.pytest("-q", **developer.environ)
    assert done.returncode != 0
    assert (
        f"NotIsolated: the database handle models:db is used by {named}"
        in done.stdout + done.stderr
    ), done.stdout + done.stderr


def test_a_module_that_is_first_imported_by_a_test_is_no_way_out(
    project: Project, developer: Developer
) -> None:
    project.write(
        models=MODELS,
        app="import models\nmodels.db.connect()\n",
        test_a="""
        def test_imports():
            from models import User
            User.create(name="x")
        def test_connects():
            import app
        def test_isolated(dbclone):
            import app
            assert not app.models.User.select().count()
        """,
    )
    done = project.pytest("-q", "-p", "no:randomly", **developer.environ)
    assert "2 failed, 1 passed" in done.stdout, done.stdout
    assert "models:db is used by test_a.py::test_imports without isolation" in done.stdout
    assert "models:db is used by test_a.py::test_connects without isolation" in done.stdout


def test_models_name_the_handle_where_no_setting_does(
    project: Project, developer: Developer
) -> None:
    project.configure(bind=None)
    project.write(
        models=MODELS,
        test_a="from models import *\ndef test_forgotten():\n    User.create(name='x')\n",
    )
    done = project.pytest("-q", **developer.environ)
    assert (
        "the database handle of models:MODELS is used by test_a.py::test_forgotten without"
        " isolation" in done.stdout
    )


def test_another_database_is_nobodys_handle(project: Project, developer: Developer) -> None:
    """A second one of the application, or one that an old test makes for itself."""
    project.write(
        models=MODELS + "\nother = dev(dbname='postgres')\nmemory = SqliteDatabase(':memory:')\n",
        test_a="""
        from models import *
        def test_other():
            assert other.execute_sql("SELECT current_database()").fetchone() == ("postgres",)
        def test_old():
            with memory.bind_ctx(MODELS):
                memory.create_tables(MODELS)
                User.create(name="x")
        def test_other_beside(dbclone):
            User.create(name="x")
            assert other.execute_sql("SELECT current_database()").fetchone() == ("postgres",)
        """,
    )
    done = project.pytest("-q", **developer.environ)
    assert "3 passed" in done.stdout, done.stdout


ENGINE = """
from sqlalchemy.orm import Session as Plain

def test_forgotten():
    with Plain(engine) as session:
        session.add(User(name="x"))
        session.commit()

def test_a_new_one_to_the_same_place():
    Base.metadata.create_all(dev())

def test_async():
    async def program():
        async with create_async_engine(URL).begin() as connection:
            await connection.execute(text("SELECT 1"))
    asyncio.run(program())

OPEN = Plain(engine)

def test_isolated(dbclone):
    OPEN.add(User(name="x"))
    OPEN.flush()

def test_with_a_session_of_before():
    OPEN.add(User(name="x"))
    OPEN.commit()
"""

POOL = """
import asyncio, time, pytest
import models
from models import *

def test_opened():
    pool.open(wait=True, timeout=60)

def test_asked_for_a_connection():
    models.pool = ConnectionPool(DEV, open=True)
    with models.pool.connection() as connection:
        connection.execute("INSERT INTO \\"user\\" (name) VALUES ('x')")

def test_async():
    async def program():
        async with AsyncConnectionPool(DEV, open=False) as found:
            pass
    asyncio.run(program())

def test_isolated(dbclone):
    pass

def test_asked_again():
    with models.pool.connection() as connection:
        connection.execute("INSERT INTO \\"user\\" (name) VALUES ('x')")
"""


@pytest.mark.parametrize("kind", ["engine", "pool"])
def test_engines_and_pools_refuse_at_once(
    project: Project, developer: Developer, kind: str
) -> None:
    project.configure(schema="*.sql", bind=f"models:{kind}")
    (project.folder / "schema.sql").write_text(
        'CREATE TABLE "user" (id serial PRIMARY KEY, name text);\n'
    )
    engine = SQLALCHEMY.replace("engine = None", "engine = dev()")
    project.write(
        models=engine if kind == "engine" else POOLS,
        test_a=POOL if kind == "pool" else ALCHEMY.split("RESETS")[0] + ENGINE,
    )
    done = project.pytest("-q", "-p", "no:randomly", "--tb=short", timeout=60, **developer.environ)
    assert "4 failed, 1 passed" in done.stdout, done.stdout
    refused = re.findall(
        f"^E .*NotIsolated: the database handle models:{kind} is used by test_a.py::test_",
        done.stdout,
        re.M,
    )
    assert len(refused) == 4, done.stdout
