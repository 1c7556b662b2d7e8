"""A sandbox that is lost in the middle of a test: named, repaired, and the tests after it run as if
nothing had happened."""

from __future__ import annotations

import pytest

from ..conftest import Project

LOST = """
    import os
    import psycopg
    import pytest
    from models import User, db

    def kill():
        pid = db.execute_sql("SELECT pg_backend_pid()").fetchone()[0]
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def test_killed(dbclone):
        User.create(name="lost")
        kill()

    def test_committed_behind_its_back(dbclone):
        User.create(name="committed")
        dbclone.connection.pgconn.exec_(b"COMMIT")

    def test_committed_and_begun_again(dbclone):
        User.create(name="committed")
        dbclone.connection.pgconn.exec_(b"COMMIT; BEGIN")

    @pytest.mark.parametrize("n", range(2))
    def test_after(dbclone, n):
        assert User.select().count() == 0
        User.create(name="one")
    """
LAYER = (
    LOST
    + """
    @pytest.fixture(scope="class")
    def ann(dbclone_class):
        User.create(name="ann")

    class TestLayer:
        def test_before(self, ann, dbclone):
            assert User.select().count() == 1
        def test_loses_it(self, ann, dbclone):
            kill()
        def test_without_its_data(self, ann, dbclone):
            assert False, "it must not run"

    class TestNext:
        def test_has_its_data(self, ann, dbclone):
            assert User.select().count() == 1

    def test_alone(dbclone):
        assert User.select().count() == 0
    """
)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_test_finds_the_template(project: Project, workers: int) -> None:
    """D1, D2, D12."""
    project.write(test_a=LOST)
    done = project.pytest("-q", "-n", str(workers))
    assert "5 passed" in done.stdout, done.stdout
    assert "test_a.py::test_killed: the connection of the test was lost" in done.stdout
    assert (
        done.stdout.count("the test ended the outer transaction, so what it wrote was committed")
        == 2
    )


def test_what_a_class_has_lost_is_said_to_its_other_tests_and_to_no_others(
    project: Project,
) -> None:
    project.write(test_a=LAYER)
    done = project.pytest("-q")
    assert "9 passed, 1 error" in done.stdout, done.stdout
    assert "the data of this class or module are lost" in done.stdout
    assert "test_a.py::TestLayer::test_loses_it: the connection of the test was lost" in done.stdout
