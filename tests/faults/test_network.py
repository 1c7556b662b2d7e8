"""A network that breaks in the middle of a statement, or never answers: errors are ours, come in
time, and the next run works."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from dbclone.errors import BuildFailed, ServerError, ServerNotFound
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ..conftest import Project
from ..oracle import differences, fingerprint
from .aftermath import Foreign, all_well, ensure, nobody_holds, write
from .proxy import Proxy, proxied
from .stops import until

Through = Callable[..., Server]


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server.dsn) as found:
        yield found


@pytest.fixture
def through(project: Project, proxy: Proxy, options: dict[str, str]) -> Iterator[Through]:
    """A function that opens the server through the proxy, with the settings of a project whose
    schema is one SQL file."""
    write(project)
    with contextlib.ExitStack() as stack:
        yield lambda **more: stack.enter_context(
            Server.open(
                load(
                    project.folder,
                    {**options, "url": proxy.url, "connect_timeout": "5", **more},
                    {},
                )
            )
        )


STATEMENTS = [
    b"CREATE DATABASE",
    b"COMMENT ON",
    b"INSERT INTO item",
    b"ALLOW_CONNECTIONS false",
    b"VACUUM",
    b"RENAME TO",
]


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("text", STATEMENTS)
def test_a_build_that_is_cut_off_at_a_statement_fails_and_the_next_one_works(
    text: bytes,
    forward: bool,
    project: Project,
    proxy: Proxy,
    through: Through,
    project_server: Server,
    truth: dict[str, str],
    others: Foreign,
) -> None:
    """A1, A7, B1: whether the server has heard the statement, and does it for nobody, or has not."""
    server = through()
    proxy.trap(text, forward=forward)
    with pytest.raises((ServerError, BuildFailed), match="connection"):
        ensure(server)
    assert proxy.cuts == 1
    nobody_holds(project, project_server)
    all_well(project, project_server, truth, others)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("text", [b"CREATE DATABASE", b"COMMENT ON", b"pg_try_advisory_lock"])
def test_a_clone_that_is_cut_off_at_a_statement_is_made_over_another_connection(
    text: bytes,
    forward: bool,
    project: Project,
    proxy: Proxy,
    through: Through,
    project_server: Server,
    truth: dict[str, str],
    others: Foreign,
) -> None:
    """B1, B3: also if the server still makes the first one, for nobody, under the very name."""
    template = ensure(through())
    proxy.trap(text, forward=forward)
    with template.clone("gw0", "r") as clone:
        assert proxy.cuts == 1
        assert differences(truth, fingerprint(clone.url)) == ""
    nobody_holds(project, project_server)
    all_well(project, project_server, truth, others)


@pytest.mark.parametrize("times", [2, 100])
def test_a_network_that_breaks_every_time_is_an_error_in_the_end(
    times: int,
    project: Project,
    proxy: Proxy,
    through: Through,
    project_server: Server,
    truth: dict[str, str],
) -> None:
    """B3: once more and no more."""
    template = ensure(through())
    proxy.trap(b"CREATE DATABASE", times=times)
    with pytest.raises(ServerError, match="was lost while a clone was made"):
        template.clone("gw0", "r")
    assert proxy.cuts == 2
    proxy.trap(b"")
    nobody_holds(project, project_server)
    all_well(project, project_server, truth)


def test_a_server_that_never_answers_is_named_in_bounded_time(
    proxy: Proxy, through: Through
) -> None:
    """Promise 6: it admits us and says nothing. libpq knows no shorter time than two seconds."""
    proxy.deaf = True
    with pytest.raises(ServerNotFound, match="no server answers"):
        through(connect_timeout="2")


def test_a_server_that_turns_everybody_away_is_named_at_once(
    proxy: Proxy, through: Through
) -> None:
    proxy.closed = True
    with pytest.raises(ServerNotFound, match="no server answers"):
        through()


def test_a_server_that_stays_away_is_waited_for_once_and_then_every_test_fails_at_once(
    project: Project,
    proxy: Proxy,
    through: Through,
    project_server: Server,
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D12, promise 6: and when it is back, the tests are too."""
    server = through(connect_timeout="2")
    with ensure(server).clone("gw0", "r") as clone:
        tries, again = [], Server.connect_again

        def connect_again(self: Server) -> psycopg.Connection[tuple[Any, ...]]:
            tries.append(self)
            return again(self)

        monkeypatch.setattr(Server, "connect_again", connect_again)
        proxy.closed = True
        proxy.cut()
        for _ in range(5):
            with pytest.raises(ServerError), clone.isolated("rollback", "a test"):
                raise AssertionError("it must not run")
        assert len(tries) > 5, "the first test waits"
        del tries[:]
        with pytest.raises(ServerError), clone.isolated("truncate", "a test"):
            raise AssertionError("it must not run")
        assert len(tries) == 1, "the others do not"
        proxy.closed = False
        with clone.isolated("rollback", "a test"):
            assert differences(truth, fingerprint(clone.url)) == ""
    nobody_holds(project, project_server)
    all_well(project, project_server, truth)


@contextlib.contextmanager
def creating(server: Server, template: Template) -> Iterator[tuple[int, list[Any]]]:
    """Have a thread make a clone whose CREATE DATABASE waits for a lock that this block has; give
    the process id of the server's process that waits, and what comes of it."""
    came: list[Any] = []

    def make() -> None:
        try:
            came.append(template.clone("gw0", "r"))
        except Exception as error:
            came.append(error)

    waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE%%' AND wait_event_type = 'Lock' AND state = 'active'"
    thread = threading.Thread(target=make)
    with psycopg.connect(**server.dsn.kwargs) as blocker:  # type: ignore[arg-type]
        blocker.execute("LOCK TABLE pg_database IN SHARE MODE")
        thread.start()
        until(lambda: bool(server.fetch(waiting)))
        ((pid,),) = server.fetch(waiting)
        with contextlib.suppress(psycopg.OperationalError):
            yield pid, came
            blocker.rollback()
    thread.join()


def test_a_create_database_that_is_cancelled_is_a_clean_error_and_leaves_nothing(
    project: Project, project_server: Server, options: dict[str, str], truth: dict[str, str]
) -> None:
    """B2."""
    with Server.open(load(project.folder, options, {})) as own:
        template = ensure(own)
        with creating(project_server, template) as (pid, came):
            project_server.fetch("SELECT pg_cancel_backend(%s)", [pid])
            until(lambda: bool(came))
        (error,) = came
        assert isinstance(error, ServerError)
        assert "was told to cancel a statement while a clone was made" in error.message
        assert project.clones(project_server) == []
        all_well(project, own, truth)


def test_a_server_process_that_is_killed_inside_create_database_takes_all_sessions_and_the_clone_is_made_all_the_same(
    project: Project, options: dict[str, str], tmp_path: Any, truth: dict[str, str]
) -> None:
    """B3: SIGKILL of one server process is a crash for the server. It recovers, and the clone is
    made."""
    from ..private import own_server

    write(project)
    with (
        own_server(project.folder, options, name=project.name) as settings,
        Server.open(settings) as own,
    ):
        template = ensure(own)
        own.connection.execute("CHECKPOINT")
        with Server.open(settings) as other, creating(other, template) as (pid, came):
            os.kill(pid, signal.SIGKILL)
            until(lambda: bool(came))
        (clone,) = came
        assert not isinstance(clone, Exception), str(clone)
        assert differences(truth, fingerprint(clone.url)) == ""
        clone.drop()
        all_well(project, own, truth)
