"""What a failed test left behind is kept for a person to look at, if somebody asks for it."""

from __future__ import annotations

import re

import pytest

from dbclone.server.server import Server

from ..conftest import Project

FAILING = """
    import pytest
    from models import User, db

    {marker}
    def test_refund(dbclone):
        User.create(name="seen")
        with db.atomic():
            User.create(name="too")
        assert False

    def test_next(dbclone):
        assert User.select().count() == 0
    """
KEPT = re.compile(r"python -m dbclone psql (\S+)")


def kept(output: str) -> list[str]:
    return list(dict.fromkeys(KEPT.findall(output)))


def names(server: Server, database: str) -> list[str]:
    connection = server.connect(database, "look")
    try:
        return [
            name
            for (name,) in connection.execute(
                'SELECT name FROM public."user" ORDER BY name'
            ).fetchall()
        ]
    finally:
        connection.close()


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop", "none"])
def test_the_rows_of_a_failed_test_are_kept_whatever_its_reset(
    project: Project, server: Server, reset: str
) -> None:
    project.write(test_a=FAILING.format(marker=f"@pytest.mark.dbclone(reset={reset!r})"))
    done = project.pytest("-q", "--dbclone-keep-failed", "-p", "no:randomly")
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    (name,) = kept(done.stdout)
    assert re.fullmatch(r"dbclone_\w+_k_test_refund_[0-9a-f]{8}", name)
    report, _, summary = done.stdout.rpartition("- dbclone -")
    assert name in report
    assert f"kept what test_a.py::test_refund left: python -m dbclone psql {name}" in summary
    assert names(server, name) == ["seen", "too"]
    listed = project.run("dbclone", "status")
    assert re.search(rf"kept +{name} .*of test_a.py::test_refund", listed.stdout), listed.stdout
    asked = project.run("dbclone", "psql", name, "--", "-Atc", 'SELECT count(*) FROM "user"')
    assert asked.stdout.strip() == "2", asked.stderr
    pruned = project.run("dbclone", "prune", "--all")
    assert f"dropped {name}" in pruned.stdout


def test_nothing_is_kept_unless_asked(project: Project, server: Server) -> None:
    project.write(test_a=FAILING.format(marker=""))
    done = project.pytest("-q")
    assert "1 failed, 1 passed" in done.stdout
    assert not kept(done.stdout)
    assert not [name for name in project.databases(server) if "_k_" in name]


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_newest_are_kept_also_of_several_workers_and_runs(
    project: Project, server: Server, workers: int
) -> None:
    project.write(
        test_a="""
        import pytest
        from models import User

        @pytest.mark.parametrize("n", range(6))
        def test_one(dbclone, n):
            assert User.select().count() == 0
            User.create(name=str(n))
            assert n % 2
        """
    )
    for _ in range(2):
        done = project.pytest("-q", "-n", str(workers), "--dbclone-keep-failed=2")
        assert "3 failed, 3 passed" in done.stdout, done.stdout
        found = [name for name in project.databases(server) if "_k_" in name]
        assert len(found) == 2
        for name in found:
            assert names(server, name) in (["0"], ["2"], ["4"])


def test_a_failing_fixture_and_a_transaction_that_failed_are_kept_as_far_as_they_got(
    project: Project, server: Server
) -> None:
    project.write(
        test_a="""
        import psycopg, pytest
        from models import User, db

        @pytest.fixture
        def broken(dbclone):
            User.create(name="from the fixture")
            raise ValueError("no")

        def test_fixture(broken):
            pass

        def test_failed_block(dbclone):
            User.create(name="before")
            db.begin()
            User.create(name="in the block")  # the server has undone it by itself
            db.execute_sql("SELECT 1/0")

        def test_good(dbclone):
            assert User.select().count() == 0
        """
    )
    done = project.pytest("-q", "--dbclone-keep-failed", "-p", "no:randomly")
    assert "1 failed, 1 passed, 1 error" in done.stdout, done.stdout
    assert "division by zero" in done.stdout
    found = {
        name.split("_k_")[1].rpartition("_")[0]: names(server, name) for name in kept(done.stdout)
    }
    assert found == {"test_fixture": ["from the fixture"], "test_failed_block": ["before"]}


def test_a_class_loses_its_data_to_a_test_that_is_kept_and_says_so(
    project: Project, server: Server
) -> None:
    project.write(
        test_a="""
        import pytest
        from models import User

        @pytest.fixture(scope="class")
        def people(dbclone_class):
            User.create(name="of the class")

        @pytest.mark.usefixtures("people")
        class TestPeople:
            def test_one(self, dbclone):
                User.create(name="mine")
                assert False

            def test_two(self, dbclone):
                assert User.select().count() == 1

        def test_after(dbclone):
            assert User.select().count() == 0
        """
    )
    done = project.pytest("-q", "--dbclone-keep-failed", "-p", "no:randomly")
    assert "1 failed, 1 passed, 1 error" in done.stdout, done.stdout
    assert "test_one failed, and what it left was kept" in done.stdout
    (name,) = kept(done.stdout)
    assert names(server, name) == ["mine", "of the class"]


def test_a_deferred_violation_cannot_be_kept_and_hides_nothing(project: Project) -> None:
    project.write(
        test_a="""
        from models import User, db

        def test_it(dbclone):
            db.execute_sql("CREATE TABLE other (id int REFERENCES \\"user\\" DEFERRABLE INITIALLY DEFERRED)")
            db.begin()
            db.execute_sql("INSERT INTO other VALUES (99)")
            assert "the original" == "failure"

        def test_next(dbclone):
            assert User.select().count() == 0
        """
    )
    done = project.pytest("-q", "--dbclone-keep-failed", "-p", "no:randomly")
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "the original" in done.stdout
    assert "could not be kept" in done.stdout
    assert "violates foreign key" in done.stdout


def test_somebody_who_looks_at_what_was_kept_is_not_disturbed(
    project: Project, server: Server
) -> None:
    project.write(test_a=FAILING.format(marker=""))
    (first,) = kept(project.pytest("-q", "--dbclone-keep-failed").stdout)
    connection = server.connect(first, "a person")
    done = project.pytest("-q", "--dbclone-keep-failed=1")
    found = [name for name in kept(done.stdout.rpartition("- dbclone -")[2])]
    assert connection.execute('SELECT count(*) FROM public."user"').fetchone() == (2,)
    connection.close()
    assert found, done.stdout
    assert first not in found
    assert names(server, found[0]) == ["seen", "too"]


@pytest.mark.parametrize("given", ["0", "many", "-3"])
def test_a_number_that_is_none_is_refused(project: Project, given: str) -> None:
    project.write(test_a=FAILING.format(marker=""))
    done = project.pytest("-q", f"--dbclone-keep-failed={given}")
    assert done.returncode == 4
    assert "--dbclone-keep-failed" in done.stderr
