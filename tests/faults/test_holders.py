"""What was held and is not any more: a builder's lock that was taken away, or that a fork could
keep; a server that is gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from dbclone.errors import ServerError
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ..conftest import Project
from ..private import own_server
from .aftermath import SCHEMA, all_well, ensure, write
from .nursery import Start
from .stops import at, ended, until


@pytest.fixture
def own(project: Project, options: dict[str, str]) -> Iterator[Settings]:
    """Settings of the project on a server of its own."""
    write(project)
    with own_server(project.folder, options, name=project.name, connect_timeout="2") as found:
        yield found


def test_a_builder_whose_lock_was_taken_away_publishes_nothing(
    project: Project,
    project_server: Server,
    options: dict[str, str],
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A7: the session that holds the lock is ended while the schema runs over another. Somebody
    else builds and publishes meanwhile; the first one notices at its next step, not after its own
    rename."""
    elsewhere = {
        **options,
        "cache_dir": str(project.folder / "elsewhere"),
        "url": project_server.dsn.url,
    }
    published: list[int] = []
    with Server.open(load(project.folder, options, {})) as robbed:

        def rob() -> None:
            monkeypatch.undo()
            pid = robbed.connection.info.backend_pid
            project_server.fetch("SELECT pg_terminate_backend(%s)", [pid])
            ended(project_server, pid)
            with Server.open(load(project.folder, elsewhere, {})) as other:
                published.append(ensure(other).database.oid)

        at("filled", rob, monkeypatch.setattr)
        with pytest.raises(
            ServerError, match="was lost while the template was looked for or built"
        ):
            ensure(robbed)
    found = ensure(project_server)
    assert (found.built, [found.database.oid]) == (False, published)
    all_well(project, project_server, truth)


FORKS = """
import os, signal
import psycopg
def make(url):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA)
    pid = os.fork()
    if not pid:
        signal.pause()
    with open("forked", "w") as file:
        file.write(str(pid))
"""


def test_a_lock_is_free_when_its_holder_dies_although_a_process_that_it_forked_lives_on(
    project: Project, project_server: Server, start: Start
) -> None:
    """E16: whoever forks without exec inherits files and sockets, which must not keep the dead
    one's locks."""
    project.configure(schema="forks:make", bind=None)
    project.write(forks=FORKS.replace("SCHEMA", repr(SCHEMA)))
    child = start("ensure", {"filled": "die"})
    child.reaches("filled")
    child.kill()
    orphan = int((project.folder / "forked").read_text())
    os.kill(orphan, 0)
    try:
        found = start("ensure", {"filled": "die"}, {"build_timeout": "3"})
        found.reaches("filled")
    finally:
        for pid in (orphan, int((project.folder / "forked").read_text())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_another_server_under_the_same_url_gets_a_template_of_its_own(
    project: Project, own: Settings, truth: dict[str, str]
) -> None:
    """A17: initdb again in the same place. Nobody takes what was known of the old one for the new
    one's."""
    with Server.open(own) as old, ensure(old) as template:
        url = old.dsn.url
        cluster = Embedded.locate(own).cluster
        cluster.stop()
        shutil.rmtree(cluster.data)
        with Server.open(own) as new:
            assert new.dsn.url == url
            assert new.facts.system != old.facts.system
            with pytest.raises(
                ServerError, match="another server answers at the private server than before"
            ):
                template.clone()
            assert project.databases(new) == []
            assert ensure(new).built
            all_well(project, new, truth)


@pytest.mark.parametrize("step", ["filled", "carrying", "asking"])
def test_a_server_that_is_killed_is_an_error_in_time_and_the_next_run_has_another(
    step: str,
    project: Project,
    own: Settings,
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B3, A20: SIGKILL of the whole server, in a build, a clone and a reset."""
    killed: list[int] = []

    def kill() -> None:
        pid = Embedded.locate(own).cluster.pid()
        if pid is not None and not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            until(lambda: Embedded.locate(own).cluster.pid() is None)

    with Server.open(own) as server:
        at(step, kill, monkeypatch.setattr)
        with pytest.raises(
            ServerError,
            match="no server answers"
            if step == "filled"
            else "the private server in .* has stopped",
        ):
            with (
                ensure(server).clone("gw0", "r") as clone,
                clone.isolated("truncate", "a test") as test,
            ):
                test.execute("INSERT INTO item (name) VALUES ('new')")
        assert killed
        monkeypatch.undo()
    with Server.open(own) as server:
        all_well(project, server, truth)
