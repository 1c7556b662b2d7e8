"""Tests that want everything real, through the marker, with the application's own handle and
several workers."""

from __future__ import annotations

import pytest

from ..conftest import Project


@pytest.mark.parametrize("workers", [0, 2])
def test_fresh_clones_and_other_resets_side_by_side(project: Project, workers: int) -> None:
    """D7. The application's handle leads to each fresh clone, under the same name; NOTIFY is
    delivered; DDL is gone."""
    project.write(
        test_a="""
        import os, psycopg, pytest
        from models import User, db

        NAMES = set()

        @pytest.mark.dbclone(reset="clone")
        @pytest.mark.parametrize("n", range(6))
        def test_everything_is_real(dbclone, n):
            NAMES.add(dbclone.name)
            assert len(NAMES) == 1
            assert User.select().count() == 0
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
                other.execute("LISTEN news")
                with db.atomic():
                    User.create(name="ann")
                    db.execute_sql("NOTIFY news, 'ann'")
                assert next(other.notifies(timeout=10, stop_after=1)).payload == "ann"
                assert other.execute('SELECT name FROM "user"').fetchall() == [("ann",)]
                other.execute("CREATE INDEX CONCURRENTLY fast ON post (text)")
            db.execute_sql("ALTER TABLE post ADD COLUMN extra int")

        @pytest.mark.dbclone(reset="drop")
        @pytest.mark.parametrize("n", range(3))
        def test_dropped_and_built_again(dbclone, n):
            assert User.create(name="ann").id == 1
            assert User.select().count() == 1

        @pytest.mark.parametrize("n", range(3))
        def test_rolled_back(dbclone, n):
            assert dbclone.reset == "rollback"
            assert User.select().count() == 0
            User.create(name="ann")

        @pytest.mark.dbclone(reset="truncate")
        @pytest.mark.parametrize("n", range(3))
        def test_put_back(dbclone, n):
            assert User.select().count() == 0
            assert User.create(name="ann").id == 1
        """
    )
    done = project.pytest("-q", "-n", str(workers))
    assert "15 passed" in done.stdout, done.stdout
    for shown in ("6 x clone", "3 x drop", "3 x rollback", "3 x truncate"):
        assert shown in done.stdout
    assert "warning" not in done.stdout


def test_a_session_that_a_test_left_open_is_traced_to_it(project: Project) -> None:
    """The application's own connections carry the test's name, because libpq reads it from the
    environment."""
    project.configure(lock_timeout=0.3, reset="truncate")
    project.write(
        test_a="""
        import os, psycopg
        from models import User

        LEFT = []

        def test_leaks(dbclone):
            LEFT.append(psycopg.connect(os.environ["DATABASE_URL"]))
            LEFT[0].execute('INSERT INTO "user" (name) VALUES (%s)', ["left"])

        def test_next(dbclone):
            assert User.select().count() == 0
        """
    )
    done = project.pytest("-q")
    assert "2 passed, 1 error" in done.stdout, done.stdout
    assert "ERROR test_a.py::test_leaks" in done.stdout
    assert "was opened by test_a.py::test_leaks" in done.stdout
    assert "INSERT INTO" in done.stdout
    project.configure(lock_timeout=0.3, reset="truncate", on_leak="terminate")
    done = project.pytest("-q")
    assert "2 passed" in done.stdout, done.stdout
    assert "ended a session in the way of a reset" in done.stdout
    assert "was opened by test_a.py::test_leaks" in done.stdout


def test_a_kept_table_that_cannot_be_kept_is_said_before_the_first_test(project: Project) -> None:
    project.configure(keep=["post"])
    project.write(test_a="def test_a(dbclone): pass\ndef test_b(dbclone): pass\n")
    done = project.pytest("-q")
    assert "2 errors" in done.stdout, done.stdout
    assert (
        "KeptTableReferenced: table 'public.post' is to be kept and references 'public.user'"
        in done.stdout
    )
