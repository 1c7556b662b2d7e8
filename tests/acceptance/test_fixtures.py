"""Which tests are isolated, how, and that what other fixtures write is inside the isolation of
their own scope."""

from __future__ import annotations

import pytest

from dbclone.server.server import Server

from ..conftest import Project
from ..developer import application_url


def passes(project: Project, expected: int, *arguments: str, **environ: str) -> str:
    """Run the project's tests; return the output if exactly `expected` passed and nothing else
    happened."""
    done = project.pytest("-q", *arguments, timeout=120, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"{expected} passed"), done.stdout
    assert "warning" not in last, done.stdout
    return done.stdout


ORDERED = """
import pytest
from models import User

def names():
    return sorted(user.name for user in User.select())

@pytest.fixture(scope="session")
def city():
    User.create(name="session")

@pytest.fixture(scope="module")
def street(city, dbclone_module):
    User.create(name="module")

@pytest.fixture
def house():
    User.create(name="function")

@pytest.fixture(scope="class")
def room(street, dbclone_class):
    User.create(name="class")

class TestA:
    def test_all_layers(self, house, room, dbclone):
        assert names() == ["class", "function", "module", "session"]
        User.create(name="test")

    def test_the_tests_own_rows_are_gone(self, room, dbclone):
        assert names() == ["class", "module", "session"]
        User.delete().execute()

    def test_deleted_rows_are_back(self, room, dbclone):
        assert names() == ["class", "module", "session"]

def test_the_class_is_gone(street, dbclone):
    assert names() == ["module", "session"]
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_each_fixture_writes_inside_its_own_scope(project: Project, workers: str) -> None:
    project.write(
        test_a=ORDERED,
        test_b="from models import User\n\ndef test_the_module_is_gone(dbclone):\n    assert"
        " User.select().count() <= 1\n",
    )
    passes(project, 5, "-n", workers)


def test_a_fixture_named_before_dbclone_in_the_signature_is_undone_too(project: Project) -> None:
    project.write(
        test_a="""
        import pytest
        from models import User
        @pytest.fixture
        def ann():
            return User.create(name="ann")
        @pytest.fixture(autouse=True)
        def everybody():
            User.create(name="everybody")
        def test_one(ann, dbclone):
            assert User.select().count() == 2
        def test_two(ann, dbclone):
            assert User.select().count() == 2
        """
    )
    passes(project, 2)


def test_autouse_isolates_every_test_but_those_that_opt_out(project: Project) -> None:
    project.configure(autouse=True)
    project.write(
        test_a="""
        import unittest, pytest
        from models import User
        @pytest.mark.parametrize("i", [1, 2])
        def test_plain(i):
            User.create(name="x")
            assert User.select().count() == 1
        class TestOld(unittest.TestCase):
            def setUp(self):
                User.create(name="set up")
            def test_one(self):
                assert User.select().count() == 1
            def test_two(self):
                assert User.select().count() == 1
        @pytest.mark.dbclone(reset="none")
        def test_without(request):
            assert "dbclone" not in request.fixturenames
        """
    )
    passes(project, 5)


def test_the_marker_chooses_the_reset_for_a_test_a_class_or_a_module(project: Project) -> None:
    project.write(
        test_a="""
        import pytest
        pytestmark = pytest.mark.dbclone(reset="truncate")
        def test_module(dbclone):
            assert dbclone.reset == "truncate"
        @pytest.mark.dbclone(reset="rollback")
        def test_own(dbclone):
            assert dbclone.reset == "rollback"
        """,
        test_b="""
        def test_default(dbclone):
            assert dbclone.reset == "rollback"
        """,
    )
    passes(project, 3)


def test_under_truncate_other_sessions_see_what_was_committed_and_nothing_is_left(
    project: Project,
) -> None:
    project.write(
        test_a="""
        import pytest
        from models import User, Post
        @pytest.mark.dbclone(reset="truncate")
        @pytest.mark.parametrize("i", range(3))
        def test_real(dbclone, i):
            user = User.create(name="x")
            Post.create(user=user, text="t")
            with dbclone.connect() as other:
                assert other.execute("SELECT count(*) FROM post").fetchone() == (1,)
            assert user.id == 1
        def test_after(dbclone):
            assert User.select().count() == 0
        """
    )
    passes(project, 4)


@pytest.mark.parametrize("setting", [True, False])
def test_reset_sequences_makes_ids_start_anew(project: Project, setting: bool) -> None:
    """D5: and only where that is asked for."""
    project.configure(reset_sequences=setting)
    mark = "" if setting else "@pytest.mark.dbclone(reset_sequences=True)"
    project.write(
        test_a=f"""
        import pytest
        from models import User
        {mark}
        @pytest.mark.parametrize("i", range(3))
        def test_ids(dbclone, i):
            assert User.create(name="x").id == 1
        """
    )
    passes(project, 3)


@pytest.mark.parametrize(
    ("marker", "problem"),
    [('reset="rolback"', "rolback"), ("'truncate'", "positional"), ("rset=1", "rset")],
)
def test_a_wrong_marker_is_a_usage_error_that_names_the_test(
    project: Project, marker: str, problem: str
) -> None:
    project.write(
        test_a=f"import pytest\n@pytest.mark.dbclone({marker})\ndef test_it(dbclone): pass\n"
    )
    done = project.pytest("-q")
    output = done.stdout + done.stderr
    assert done.returncode == 4, output
    assert "test_a.py::test_it" in output
    assert problem in output
    assert "HINT:" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("workers", "given"), [("0", "'models:MODELS'"), ("2", "models.MODELS"), ("2", "create")]
)
def test_a_hook_in_conftest_may_give_the_schema(
    project: Project, server: Server, workers: str, given: str
) -> None:
    project.configure(schema=None)
    project.write(
        conftest=f"""
        import models, psycopg
        def create(url):
            with psycopg.connect(url) as connection:
                connection.execute('CREATE TABLE "user" (id serial PRIMARY KEY, name text)')
        def pytest_dbclone_schema(config):
            return {given}
        """,
        test_a="""
        from models import User
        def test_one(dbclone):
            User.create(name="x")
        def test_two(dbclone):
            assert User.select().count() == 0
        """,
    )
    passes(project, 2, "-n", workers)
    assert project.clones(server) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_application_that_was_imported_before_anything_else_is_led_to_the_clone(
    project: Project, workers: str
) -> None:
    """E12: also if its handle has led to another database since its import, which nothing of a test
    ever reaches."""
    project.write(
        early="import models, sys\nassert 'dbclone.runner' not in sys.modules\n",
        test_a="""
        import early, pytest
        from models import User, db
        @pytest.mark.parametrize("reset", ["rollback", "truncate"])
        @pytest.mark.parametrize("i", range(2))
        def test_it(dbclone_worker, reset, i):
            with dbclone_worker.isolated(reset, "test"):
                assert db.execute_sql("SELECT current_database()").fetchone() == (dbclone_worker.name,)
                User.create(name="ann")
                assert User.select().count() == 1
        """,
    )
    passes(
        project,
        4,
        "-n",
        workers,
        "-p",
        "early",
        PYTHONPATH=f"{project.folder}:{project.environ.get('PYTHONPATH', '')}",
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_names_bind_before_the_first_conftest_is_imported(project: Project, workers: str) -> None:
    """E12: an application that reads DATABASE_URL at import reads the worker's own, with the driver
    that it counts on."""
    project.write(
        conftest="import os\nSEEN = os.environ['DATABASE_URL']\n",
        test_a="""
        import pytest
        from conftest import SEEN
        @pytest.mark.parametrize("i", range(4))
        def test_it(dbclone, i):
            assert SEEN == dbclone.url.replace("postgresql://", "postgresql+psycopg://")
        """,
    )
    passes(project, 4, "-n", workers, DATABASE_URL=application_url())


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_schema_is_tried_once_said_once_and_leaves_nothing(
    project: Project, server: Server, workers: str
) -> None:
    """A8."""
    project.configure(schema="broken:build", bind=None)
    project.write(
        broken="""
        def build(url):
            open("attempts", "a").write("x")
            raise RuntimeError("no such column")
        """,
        test_a="def test_one(dbclone): pass\ndef test_two(dbclone): pass\n",
    )
    done = project.pytest("-q", "-n", workers)
    assert done.returncode == 1, done.stdout
    assert "no such column" in done.stdout + done.stderr
    assert (project.folder / "attempts").read_text() == "x"
    assert project.databases(server) == []


def test_a_wrong_setting_is_a_usage_error_without_a_traceback(project: Project) -> None:
    project.configure(resett="truncate")
    project.write(test_a="def test_it(dbclone): pass\n")
    done = project.pytest("-q")
    output = done.stdout + done.stderr
    assert done.returncode == 4, output
    assert "unknown setting 'resett'" in output
    assert "Did you mean 'reset'?" in output
    assert "Traceback" not in output


def test_an_option_overrides_the_environment_and_the_header_says_who_spoke(
    project: Project,
) -> None:
    project.write(test_a="def test_it(dbclone):\n    assert dbclone.reset == 'truncate'\n")
    done = project.pytest("--dbclone-reset=truncate", DBCLONE_RESET="none")
    assert "reset=truncate (from the option --dbclone-reset)" in done.stdout
    assert "1 passed" in done.stdout


def test_the_summary_says_what_was_built_and_why(project: Project) -> None:
    project.write(test_a="def test_it(dbclone): pass\n")
    assert "built in" in passes(project, 1)
    assert "reused in" in passes(project, 1)
    assert "built in" in passes(project, 1, "--dbclone-rebuild")
    models = (project.folder / "models.py").read_text()
    (project.folder / "models.py").write_text(
        models + "\nclass Tag(Base):\n    name = TextField()\n\nMODELS.append(Tag)\n"
    )
    output = passes(project, 1, "-n", "2")
    assert "built in" in output
    assert "because model models.Tag is new" in output
    assert "2 clones" in output or "1 clone " in output
    assert "1 x rollback" in output


def test_the_fixtures_second_name_leaves_the_packages_to_the_test(project: Project) -> None:
    project.write(
        test_a="""
        import dbclone
        import pytest
        from models import User, db

        @pytest.mark.dbclone(reset="rollback")
        def test_it(dbclone_db):
            User.create(name="ann")
            assert dbclone_db.execute('SELECT name FROM "user"').fetchall() == [("ann",)]
            with pytest.raises(dbclone.SandboxLimit):
                db.execute_sql("VACUUM")

        def test_both_names_are_one_fixture(dbclone, dbclone_db):
            assert dbclone is dbclone_db
            assert User.select().count() == 0
        """
    )
    done = project.pytest()
    assert "2 passed" in done.stdout, done.stdout
