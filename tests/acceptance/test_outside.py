"""What tests leave on the server outside their database is not isolated, and is said."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from dbclone.server.server import Server

from ..conftest import Project

TESTS = """
import psycopg, pytest
from models import User, db

@pytest.mark.dbclone(reset="truncate")
def test_makes_a_role(dbclone):
    db.execute_sql('CREATE ROLE "{role}"')
    db.execute_sql('ALTER ROLE "{role}" SET work_mem = 65')
    User.create(name="ann")

@pytest.mark.dbclone(reset="truncate")
def test_finds_it(dbclone):
    assert db.execute_sql("SELECT count(*) FROM pg_roles WHERE rolname = '{role}'").fetchone() == (1,)
    assert User.select().count() == 0

@pytest.mark.dbclone(reset="rollback")
def test_whose_role_is_rolled_back(dbclone):
    db.execute_sql('CREATE ROLE "{role} too"')
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_role_that_a_test_makes_stays_and_is_reported(
    project: Project, server: Server, workers: int
) -> None:
    """C16: as the README says."""
    role = f"left_by_{project.name}"
    project.write(test_a=TESTS.format(role=role))
    try:
        done = project.pytest("-q", "-n", str(workers), "--dist", "loadfile", "-p", "no:randomly")
        assert "3 passed" in done.stdout, done.stdout
        assert "appeared on the server during this run, where no reset undoes it" in done.stdout
        assert f": role {role}, setting work_mem of {role}\n" in done.stdout
        again = project.pytest("-q", "-n", str(workers), "-k", "finds or rolled")
        assert "2 passed" in again.stdout
        assert "appeared" not in again.stdout
    finally:
        server.connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def test_a_changed_setting_of_the_server_is_reported_to_a_superuser(
    project: Project, server: Server
) -> None:
    """C16."""
    project.write(
        test_a="""
        import psycopg
        def test_alters_the_system(dbclone):
            with psycopg.connect(dbclone.url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET log_min_duration_statement = '7min'")
        """
    )
    try:
        done = project.pytest("-q")
        assert "1 passed" in done.stdout, done.stdout
        assert "where no reset undoes it: setting log_min_duration_statement\n" in done.stdout
    finally:
        with psycopg.connect(server.dsn.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET log_min_duration_statement")
