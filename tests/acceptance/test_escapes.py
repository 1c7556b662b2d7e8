"""What a test commits outside its sandbox is noticed, named, removed and remembered (points 7 and
D1 of the promises)."""

from __future__ import annotations

import re

import pytest

from ..conftest import Project

ESCAPE = """
    import os, psycopg
    from models import User

    def outside(statement):
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(statement)

    def test_inside(dbclone):
        User.create(name="in")

    def test_escapes(dbclone):
        User.create(name="in")
        outside("INSERT INTO \\"user\\" (name) VALUES ('out'), ('of')")

    def test_next(dbclone):
        assert User.select().count() == 0
    """


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_named_with_tables_and_counts_and_removed(project: Project, workers: int) -> None:
    project.write(test_a=ESCAPE)
    done = project.pytest("-n", str(workers), "-q", "-p", "no:randomly")
    assert done.returncode == 0, done.stdout
    assert "3 passed, 1 warning" in done.stdout
    assert "test_a.py::test_escapes committed to" in done.stdout
    assert "2 rows in public.user" in done.stdout


def test_with_strict_it_fails(project: Project) -> None:
    project.configure(strict=True)
    project.write(test_a=ESCAPE)
    done = project.pytest("-q")
    assert "3 passed, 1 error" in done.stdout
    assert "WriteEscaped" in done.stdout
    assert "test_a.py::test_escapes committed to" in done.stdout
    assert 'reset="truncate"' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_remembered_and_starts_under_truncate_the_next_time(
    project: Project, workers: int
) -> None:
    project.write(
        test_a=ESCAPE
        + "\n    def test_which(dbclone):\n        assert dbclone.reset == 'rollback'\n"
    )
    first = project.run("pytest", "-q", "-n", str(workers))
    assert "1 warning" in first.stdout
    assert "truncate" not in first.stdout.split("dbclone")[-1].split("committed")[0]
    second = project.run("pytest", "-q", "-n", str(workers))
    assert second.returncode == 0, second.stdout
    assert "warning" not in second.stdout
    assert "1 x truncate" in second.stdout
    assert "3 x rollback" in second.stdout


def test_a_schema_changed_outside_is_named_and_the_clone_replaced(project: Project) -> None:
    project.write(test_a=re.sub(r"INSERT INTO .*'of'\)", "CREATE TABLE escaped (v int)", ESCAPE))
    done = project.pytest("-q")
    assert done.returncode == 0, done.stdout
    assert "created escaped" in done.stdout
    assert "clone replaced" in done.stdout


def test_data_of_wider_fixtures_is_nobodys_escape(project: Project) -> None:
    """What a session or module fixture writes through the bound handle stays for its tests,
    whenever it was first asked for."""
    project.write(
        test_a="""
        import pytest
        from models import User, Post

        @pytest.fixture(scope="session")
        def early(dbclone_worker):
            return User.create(name="early")

        @pytest.fixture(scope="module")
        def late():
            return User.create(name="late")

        def test_one(dbclone, early):
            assert User.select().count() == 1
            User.create(name="mine")

        def test_two(dbclone):
            assert User.select().count() == 1

        @pytest.mark.parametrize("n", range(3))
        def test_three(dbclone, late, n):
            assert {user.name for user in User.select()} == {"early", "late"}
            User.create(name="mine")

        @pytest.mark.dbclone(reset="truncate")
        def test_for_real(dbclone, late):
            assert {user.name for user in User.select()} == {"early", "late"}
            User.update(name=User.name + "!").execute()

        def test_after(dbclone, late):
            assert {user.name for user in User.select()} == {"early", "late"}
        """
    )
    done = project.pytest("-q")
    assert "7 passed" in done.stdout, done.stdout
    assert "warning" not in done.stdout


def test_commits_in_other_databases_are_nobodys_escape(project: Project) -> None:
    """Two workers that commit all the time, each in its own clone."""
    project.configure(reset="truncate")
    project.write(
        test_a="""
        import pytest
        from models import User

        @pytest.mark.parametrize("n", range(40))
        @pytest.mark.dbclone(reset="truncate")
        def test_real(dbclone, n):
            User.create(name=str(n))

        @pytest.mark.parametrize("n", range(40))
        @pytest.mark.dbclone(reset="rollback")
        def test_rolled_back(dbclone, n):
            assert User.select().count() == 0
            User.create(name=str(n))
        """
    )
    done = project.pytest("-q", "-n", "2")
    assert "80 passed" in done.stdout, done.stdout
    assert "warning" not in done.stdout
    assert "committed" not in done.stdout
