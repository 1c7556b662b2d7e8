"""Sessions of ours last and their waits do not: whatever a role's settings, a stopped process or
somebody's lock do to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.databases import ddl
from dbclone.databases.naming import Mark, build_name
from dbclone.databases.prune import prune
from dbclone.errors import ServerError
from dbclone.server import connection as connect
from dbclone.server.dsn import Dsn
from dbclone.server.reconnect import translate_lost_connection
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ...conftest import Project
from ...faults.stops import until

SHORT = "100ms"
TIMEOUTS = (
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "statement_timeout",
)


def told_to_end(server: Server, pids: set[int]) -> set[int]:
    """Return which of these sessions there still are, after every other session of a role with such
    settings would have ended."""
    with psycopg.connect(server.database("postgres").url, autocommit=True) as watch:
        watch.execute(sql.SQL("SET idle_session_timeout = {}").format(sql.Literal(SHORT)))
        until(lambda: _is_over(watch))
    return {
        pid
        for (pid,) in server.fetch(
            "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", [list(pids)]
        )
    }


def _is_over(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Return whether the server has ended a session, without speaking to it, which would begin its
    idle time anew."""
    with contextlib.suppress(psycopg.OperationalError):
        connection.pgconn.consume_input()
        return connection.pgconn.status != psycopg.pq.ConnStatus.OK
    return True


@pytest.fixture
def hurried(server: Server, role: Dsn) -> Dsn:
    """A role whose sessions may be idle for a moment only, in a transaction or not."""
    for name in TIMEOUTS[:2]:
        limit(server, role, name, SHORT)
    return role


def limit(server: Server, role: Dsn, name: str, value: str) -> None:
    """Set something for a role, if the server knows it."""
    if name != "transaction_timeout" or server.facts.major >= 17:
        text = sql.SQL("ALTER ROLE {} SET {} = {}")
        server.connection.execute(
            text.format(sql.Identifier(role.get("user")), sql.Identifier(name), sql.Literal(value))
        )


@pytest.fixture
def hurried_clone(
    server: Server, hurried: Dsn, project: Project, options: dict[str, str]
) -> Iterator[Clone]:
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(
        "CREATE TABLE item (id int); SELECT pg_sleep(0.2); INSERT INTO item VALUES (1);"
    )
    settings = load(project.folder, {**options, "url": hurried.url}, {})
    with Server.open(settings) as opened:
        # Only now: a slow machine may need longer for the first question of all, in which the
        # session is freed of this limit.
        limit(server, hurried, "transaction_timeout", SHORT)
        with Template.ensure(opened, handles.load(settings)[0]).clone() as made:
            yield made


def sessions(server: Server, clone: Clone, *more: psycopg.Connection[Any]) -> set[int]:
    """Return the process ids of the sessions that are there for a clone, and of its warm pool's."""
    state = clone.state
    sandbox = state._session.real if state._session is not None else None
    connections = [clone.server.connection, state._control, sandbox, *more]
    pools = server.fetch(
        "SELECT pid FROM pg_stat_activity"
        " WHERE usename = %s AND application_name ~ '^dbclone pool'",
        [clone.server.facts.role],
    )
    pids = {c.info.backend_pid for c in connections if c is not None and not c.closed}
    return pids | {pid for (pid,) in pools}


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])
def test_what_a_role_says_of_idle_sessions_ends_none_of_ours(
    server: Server, hurried_clone: Clone, reset: str
) -> None:
    """The lease, the control session, the sandbox, the warm pool, and the connection of the test's
    fixture."""
    for number in range(2):
        with hurried_clone.isolated(reset, "test") as isolation:
            assert isolation.execute("SELECT count(*) FROM item").fetchone() == (1,)
            isolation.execute("INSERT INTO item VALUES (2)")
            if number:
                ours = sessions(server, hurried_clone, isolation.connection)
                assert len(ours) >= 2
                assert told_to_end(server, ours) == ours
                assert isolation.execute("SELECT count(*) FROM item").fetchone() == (2,)
    ours = sessions(server, hurried_clone)
    assert told_to_end(server, ours) == ours
    assert hurried_clone.server.leases.holds(hurried_clone.name)
    assert hurried_clone.name not in {d.name for d, _ in prune(server)}
    assert not hurried_clone.report.notes


@pytest.mark.parametrize("where", ["database", "server"])
def test_what_a_database_or_the_server_says_ends_none_of_ours_either(
    where: str, server: Server, project: Project, options: dict[str, str]
) -> None:
    """ALTER DATABASE, also in the schema, where each clone gets it; and postgresql.conf."""
    set_it = f"EXECUTE format('ALTER DATABASE %I SET idle_session_timeout = ''{SHORT}''', current_database());"
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(
        "CREATE TABLE item (id int);"
        + (f"DO $$ BEGIN {set_it} END $$;" if where == "database" else "")
    )
    settings = load(project.folder, options, {})
    if where == "server":
        server.connection.execute(f"ALTER SYSTEM SET idle_session_timeout = '{SHORT}'")
        server.connection.execute("SELECT pg_reload_conf()")
    try:
        with (
            Server.open(settings) as opened,
            Template.ensure(opened, handles.load(settings)[0]).clone() as clone,
        ):
            with psycopg.connect(clone.url, autocommit=True) as application:
                assert application.execute("SHOW idle_session_timeout").fetchone() == (SHORT,), (
                    "production's stay production's"
                )
                for reset in ("rollback", "truncate"):
                    with clone.isolated(reset, "test") as isolation:
                        assert isolation.execute("SHOW idle_session_timeout").fetchone() == ("0",)
                until(lambda: _is_over(application))
            assert clone.server.leases.holds(clone.name)
            clone.server.fetch("SELECT 1")
    finally:
        server.connection.execute("ALTER SYSTEM RESET idle_session_timeout")
        server.connection.execute("SELECT pg_reload_conf()")


def test_a_sandbox_begins_as_the_application_s_own_session_would_but_for_its_end(
    hurried_clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What limits statements is the application's, and libpq's own variables count; RESET does not
    bring the end back."""
    monkeypatch.setenv(
        "PGOPTIONS", "-c statement_timeout=77s -c idle_in_transaction_session_timeout=1"
    )
    with hurried_clone.isolated("rollback", "test") as isolation:
        isolation.execute("RESET ALL")
        for name, value in {
            "statement_timeout": "77s",
            "idle_in_transaction_session_timeout": "0",
        }.items():
            assert isolation.execute(f"SHOW {name}").fetchone() == (value,)
        if hurried_clone.server.facts.major >= 17:
            assert isolation.execute("SHOW transaction_timeout").fetchone() == ("0",)


def test_a_long_build_meets_no_limit_of_the_role(
    server: Server, role: Dsn, project: Project, options: dict[str, str]
) -> None:
    """SQL files run in a session of ours."""
    names = [name for name in TIMEOUTS if name != "transaction_timeout" or server.facts.major >= 17]
    for name in names:
        limit(server, role, name, SHORT if name != "transaction_timeout" else "10min")
    project.configure(schema="schema.sql", bind=None)
    shown = ", ".join(f"current_setting('{name}')" for name in names)
    (project.folder / "schema.sql").write_text(
        f"BEGIN; SELECT pg_sleep(0.2); CREATE TABLE met AS SELECT ARRAY[{shown}] AS values; COMMIT;"
    )
    settings = load(project.folder, {**options, "url": role.url}, {})
    with Server.open(settings) as opened:
        template = Template.ensure(opened, handles.load(settings)[0])
        with template.clone() as clone, psycopg.connect(server.database(clone.name).url) as look:
            assert look.execute("SELECT values FROM met").fetchone() == (["0" for _ in names],)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def leftover(server: Server) -> Iterator[str]:
    """A database of ours that nobody owns."""
    name = build_name("lasting")
    ddl.create(server, name, "template0", Mark.make("build", "lasting", server.facts.system))
    yield name
    if (found := ddl.find(server, name)) is not None:
        ddl.drop(server, found, force=True)


def test_a_stopped_process_of_the_server_keeps_no_drop_for_ever_and_is_named(
    server: Server, leftover: str
) -> None:
    """Before a database is gone, every process has to take note, in whatever database it is. Named
    from 15 on, after 5 s."""
    found = ddl.find(server, leftover)
    assert found is not None
    with psycopg.connect(server.dsn.url, autocommit=True) as bystander:
        pid = bystander.info.backend_pid
        with stopped(pid):
            if server.facts.major < 15:
                pytest.skip("14 asks nobody")
            with pytest.raises(
                ServerError, match=rf"{leftover}.* could not be dropped within 6 s"
            ) as caught:
                ddl.drop(server, found, patience=6.0)
            assert str(pid) in caught.value.detail
            assert "kill -CONT" in caught.value.hint
            assert leftover not in {d.name for d, _ in prune(server, budget=1.0)}
    assert server.fetch("SHOW statement_timeout") == [("10min",)]
    assert leftover in {d.name for d, _ in prune(server)}, "what was begun is finished"


def test_a_process_of_ours_that_is_stopped_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on the server bounds a statement whose own process does not run."""
    with Server.open(server.settings) as opened:
        connection, pid = opened.connection, opened.fetch("SELECT pg_backend_pid()")[0][0]
        assert isinstance(connection, connect.Interruptible)
        assert connection.patience == 60
        connection.patience = 0.3
        with stopped(pid):
            with (
                pytest.raises(
                    ServerError, match=r"the connection to .* was lost while trying"
                ) as caught,
                translate_lost_connection(opened, "trying"),
            ):
                opened.fetch("SELECT 1")
            assert f"server process {pid} has not answered" in caught.value.detail
            assert connection.closed
    until(lambda: not server.fetch("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]))


def test_patience_is_with_silence_and_not_with_what_takes_long(server: Server) -> None:
    with server.connect("postgres", "control") as connection:
        assert isinstance(connection, connect.Interruptible)
        assert connection.patience == server.settings.build_timeout
        connection.patience = 0.3
        with connection.patient(60):
            connection.execute("SELECT pg_sleep(0.8)")
        assert connection.patience == 0.3
        rows = connection.execute(
            "SELECT repeat('x', 100000), pg_sleep(0.05) FROM generate_series(1, 16)"
        ).fetchall()
        assert len(rows) == 16
        with pytest.raises(psycopg.OperationalError, match="has not answered for"):
            connection.execute("SELECT pg_sleep(60)")


def test_a_lock_that_somebody_keeps_is_waited_for_within_bounds_and_its_holder_named(
    server: Server, leftover: str
) -> None:
    """A psql with a transaction that nobody ends; the limit is a minute unless the session says
    otherwise."""
    assert server.fetch("SHOW lock_timeout") == [("1min",)]
    server.connection.execute("SET lock_timeout = '100ms'")
    try:
        with psycopg.connect(server.dsn.url, application_name="forgotten psql") as holder:
            holder.execute(
                sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(sql.Identifier(leftover))
            )
            with (
                pytest.raises(ServerError, match="a lock was not to be had") as caught,
                translate_lost_connection(server, "trying"),
            ):
                ddl.rename(server, leftover, build_name("lasting"))
            assert f"process {holder.info.backend_pid} " in caught.value.detail
            assert "forgotten psql" in caught.value.detail
            started = time.monotonic()
            assert leftover not in {d.name for d, _ in prune(server, budget=1.0)}
            assert time.monotonic() - started < 60
            holder.rollback()
        assert leftover in {d.name for d, _ in prune(server)}
    finally:
        server.connection.execute("RESET lock_timeout")
