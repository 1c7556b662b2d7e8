"""The guard asks at the far end of the connection that is about to destroy, and sessions are ended
by more than a number."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from dbclone.clone.clone import Clone
from dbclone.databases import ddl
from dbclone.databases.naming import Mark, build_name
from dbclone.databases.ownership import verify_connected, verify_owned
from dbclone.errors import NotOwned
from dbclone.server.server import Server
from dbclone.server.sessions import Identity

SCHEMA = "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1);"

pytestmark = pytest.mark.clone_of(schema=SCHEMA)


def items(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT id FROM item ORDER BY 1").fetchall()


def test_a_connection_that_leads_elsewhere_is_no_licence_whatever_it_was_meant_for(
    server: Server, fresh_clone: Clone
) -> None:
    """S2: a pooler that knows databases by other names, and a host name that means another machine
    by now."""
    with (
        server.connect("postgres", "elsewhere") as connection,
        pytest.raises(NotOwned, match="was meant to lead into"),
    ):
        verify_connected(connection, server, fresh_clone.name)
    other = Server(server.settings, server.dsn, server.connection)
    other.__dict__["facts"] = server.facts._replace(system="42")
    with server.connect(fresh_clone.name, "here") as connection:
        verify_connected(connection, server, fresh_clone.name)
        with pytest.raises(NotOwned, match="leads to another cluster"):
            verify_connected(connection, other, fresh_clone.name)


def test_the_database_that_we_are_connected_to_is_left_alone(server: Server) -> None:
    """S1: the one in the URL is for connecting only, also if dbclone made it."""
    name = build_name("licence")
    ddl.create(server, name, "template0", Mark.make("build", "licence", server.facts.system))
    with contextlib.closing(server.connect(name, "inside")) as connection:
        inside = Server(server.settings, server.dsn, connection)
        with pytest.raises(NotOwned, match="the one that we are connected to"):
            verify_owned(inside, name)
    made = ddl.find(server, name)
    assert made is not None
    ddl.drop(server, made, force=True)


@pytest.mark.parametrize("reset", ["truncate", "drop", "clone"])
def test_a_test_that_writes_over_its_clone_s_comment_is_reset_all_the_same(
    fresh_clone: Clone, reset: str
) -> None:
    """S2: that this very process made the database is known better than by its mark; to drop it,
    the mark is needed still."""
    with fresh_clone.isolated("clone", "a swap ahead"):
        pass
    fresh_clone.state.disconnect()
    comment = sql.SQL("COMMENT ON DATABASE {} IS 'mine'").format(sql.Identifier(fresh_clone.name))
    with fresh_clone.isolated(reset, "test") as isolation:
        isolation.execute(comment)
        isolation.execute("INSERT INTO item VALUES (2)")
        fresh_clone.state.disconnect()
    with fresh_clone.isolated("truncate", "next"):
        assert items(fresh_clone.url) == [(1,)]
    if reset == "truncate":
        fresh_clone.server.connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(fresh_clone.name),
                sql.Literal(
                    fresh_clone.mark.bound(fresh_clone.name, fresh_clone.state.made).text()
                ),
            )
        )


def test_a_session_is_ended_only_if_it_is_the_one_that_was_seen(
    server: Server, fresh_clone: Clone
) -> None:
    """S17: process ids are given again, so database and start have to be the same too."""
    with psycopg.connect(fresh_clone.url, autocommit=True) as connection:
        seen = Identity.of(connection)
        assert seen.pid == connection.info.backend_pid
        assert seen.started is not None
        for wrong in (
            seen._replace(database=seen.database + 1),
            seen._replace(started=seen.started - timedelta(microseconds=1)),
            seen._replace(started=None),
        ):
            assert not wrong.end(server.connection)
        connection.execute("SELECT 1")
        assert seen.end(server.connection)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_ending_the_sessions_of_one_database_ends_no_other(
    server: Server, fresh_clone: Clone
) -> None:
    """S17: not one of our own, nor of our role, nor of anybody in another database."""
    name = f"neighbour_{uuid.uuid4().hex[:8]}"
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        with (
            psycopg.connect(server.database(name).url, autocommit=True) as neighbour,
            psycopg.connect(server.database("postgres").url, autocommit=True) as other,
            psycopg.connect(fresh_clone.url) as leaked,
        ):
            leaked.execute("INSERT INTO item VALUES (3)")
            fresh_clone.server.settings = replace(
                fresh_clone.server.settings, on_leak="terminate", lock_timeout=0.1
            )
            with fresh_clone.isolated("truncate", "test") as isolation:
                isolation.execute("INSERT INTO item VALUES (2)")
            fresh_clone.replace("a test")
            neighbour.execute("SELECT 1")
            other.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                leaked.execute("SELECT 1")
    finally:
        server.connection.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )
