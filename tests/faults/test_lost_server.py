"""The server restarts at once, or all connections to it are cut, at every step of a build, a clone,
a test and its reset.

Builds end with an error of ours and leave nothing that is used; clones and tests go on over a new
connection, in a fresh clone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg
import pytest

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.errors import BuildFailed, Error, SandboxLimit, ServerError
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.template.template import Template

from ..conftest import Open, Project
from ..oracle import differences, fingerprint
from ..private import own_server
from .aftermath import all_well, ensure, nobody_holds, write
from .proxy import Proxy, proxied
from .stops import at, until

Put = Callable[[object, str, object], None]


@dataclass
class Place:
    """A server that can be lost. `options` lead to it; `strike` takes all sessions away, and the
    next ones are admitted."""

    options: dict[str, str]
    strike: Callable[[], None]
    struck: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def once(self) -> None:
        """Strike, but only the first time."""
        self.struck += 1
        if self.struck == 1:
            self.strike()


@pytest.fixture(scope="module")
def restarting(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]
) -> Iterator[Place]:
    """A server of these tests alone, which does what `pg_ctl restart -m immediate` would let it do."""
    with own_server(tmp_path_factory.mktemp("place"), options, keep_server="true") as settings:
        Server.open(settings).close()
        cluster = Embedded.locate(settings).cluster
        place = Place(
            {**options, "cache_dir": settings.cache_dir, "keep_server": "true"}, lambda: None
        )

        def restart() -> None:
            pid = cluster.pid()
            assert pid is not None
            os.kill(pid, signal.SIGQUIT)
            until(lambda: cluster.pid() is None)
            place.processes.append(cluster.start(60))

        place.strike = restart
        yield place
        cluster.stop()
        for process in place.processes:
            process.wait()


@pytest.fixture(scope="module")
def cutting(server: Server, options: dict[str, str]) -> Iterator[tuple[Place, Proxy]]:
    """The usual server behind a proxy that cuts all connections."""
    with proxied(server.dsn) as proxy:
        yield Place({**options, "url": proxy.url}, proxy.cut), proxy


@pytest.fixture(params=["restart", "cut"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "restart":
        found: Place = request.getfixturevalue("restarting")
    else:
        found, _ = request.getfixturevalue("cutting")
    found.struck = 0
    return found


@pytest.fixture
def shop_project(project: Project) -> Project:
    write(project)
    return project


@pytest.fixture
def shop_options(place: Place) -> dict[str, str]:
    """They lead to the server that can be lost."""
    return place.options


def lasting(server: Server) -> Template:
    """Ensure a template that a crash does not take: a private server does not wait for its log, and
    loses its newest commits."""
    template = ensure(server)
    server.connection.execute("CHECKPOINT")
    return template


@pytest.mark.parametrize(
    "step", ["leased", "created", "filling", "filled", "closed", "finished", "sealed", "renamed"]
)
def test_a_build_whose_server_is_lost_fails_in_our_words_and_the_next_one_works(
    step: str,
    project: Project,
    place: Place,
    shop: Open,
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A1, A7: publishing goes over the connection that holds the lock, so who has lost it publishes
    nothing."""
    server = shop()
    schema, _ = handles.load(server.settings)
    if step != "filling":
        at(step, place.once, monkeypatch.setattr)
    with pytest.raises((ServerError, BuildFailed)) as caught:
        Template.ensure(
            server,
            schema,
            progress=lambda text: place.once() if step == "filling" and "INSERT" in text else None,
        )
    assert place.struck
    assert isinstance(caught.value, BuildFailed if step == "filling" else ServerError)
    monkeypatch.undo()
    after = shop()
    nobody_holds(project, after)
    template = all_well(project, after, truth)
    assert step == "renamed" or template.built is True


@pytest.mark.parametrize("step", ["leased", "created", "carrying"])
def test_a_clone_whose_server_is_lost_is_made_all_the_same(
    step: str,
    project: Project,
    place: Place,
    shop: Open,
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B3."""
    server = shop()
    template = lasting(server)
    at(step, place.once, monkeypatch.setattr)
    with template.clone("gw0", "r") as clone:
        assert place.struck
        assert differences(truth, fingerprint(clone.url)) == ""
        nobody_holds(project, server)
        (held,) = project.clones(server)
        assert held == clone.name
    assert project.clones(server) == []
    all_well(project, server, truth)


def unharmed(clone: Clone, reset: str, truth: dict[str, str]) -> None:
    """Two tests that find the template, and write. A rollback does not promise what numbers come
    next."""
    for name in ("after", "after that"):
        with clone.isolated(reset, name) as test:
            found = fingerprint(clone.url, sequences=reset != "rollback")
            assert (
                differences(
                    {key: truth[key] for key in truth if key in found or reset != "rollback"}, found
                )
                == ""
            )
            test.execute("INSERT INTO item (name) VALUES ('after')")


@contextlib.contextmanager
def survived(
    project: Project, server: Server, reset: str, truth: dict[str, str]
) -> Iterator[Clone]:
    """A clone that the block may harm as it likes: afterwards two tests find the template in it,
    and nothing of it is left."""
    with lasting(server).clone("gw0", "r") as clone:
        yield clone
        unharmed(clone, reset, truth)
    nobody_holds(project, server)
    all_well(project, server, truth)


RESETS = [
    ("rollback", "rolling back"),
    ("truncate", "asking"),
    ("truncate", "putting right"),
    ("truncate", "put right"),
    ("clone", "handing over"),
    ("clone", "handed over"),
    ("drop", "clearing"),
    ("drop", "cleared"),
]


@pytest.mark.parametrize(("reset", "step"), RESETS)
def test_a_reset_whose_server_is_lost_is_replaced_by_a_fresh_clone(
    reset: str,
    step: str,
    project: Project,
    place: Place,
    shop: Open,
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D12."""
    with survived(project, shop(), reset, truth) as clone:
        at(step, place.once, monkeypatch.setattr)
        with clone.isolated(reset, "a test") as test:
            test.execute("INSERT INTO item (name) VALUES ('new')")
        assert place.struck
        monkeypatch.undo()


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_a_test_whose_server_is_lost_sees_the_cause_and_the_next_one_the_template(
    reset: str, project: Project, place: Place, shop: Open, truth: dict[str, str]
) -> None:
    """D12, B3."""
    with survived(project, shop(), reset, truth) as clone:
        with clone.isolated(reset, "a test") as test:
            test.execute("INSERT INTO item (name) VALUES ('new')")
            place.strike()
            with pytest.raises(psycopg.OperationalError):
                test.execute("SELECT 1")


@pytest.mark.parametrize("reset", ["rollback", "truncate", "clone", "drop"])
def test_a_server_that_was_lost_between_two_tests_harms_neither(
    reset: str, project: Project, place: Place, shop: Open, truth: dict[str, str]
) -> None:
    """D12."""
    with survived(project, shop(), reset, truth) as clone:
        with clone.isolated(reset, "a test") as test:
            test.execute("INSERT INTO item (name) VALUES ('new')")
        place.strike()


@pytest.mark.parametrize("during", [True, False])
def test_the_data_of_a_class_that_were_lost_are_never_silently_missing(
    during: bool, project: Project, place: Place, shop: Open, truth: dict[str, str]
) -> None:
    """D12: its other tests are told, and the next class finds the template."""
    with lasting(shop()).clone("gw0", "r") as clone:
        with clone.layer("a class") as layer:
            layer.execute("INSERT INTO item (name) VALUES ('of the class')")
            with contextlib.suppress(psycopg.OperationalError), clone.isolated("rollback", "one"):
                if during:
                    place.strike()
            if not during:
                place.strike()
            for _ in range(3):
                with pytest.raises(SandboxLimit, match="the data of this class or module are lost"):
                    with clone.isolated("rollback", "another"):
                        raise AssertionError("it must not run")
        unharmed(clone, "rollback", truth)


def test_a_snapshot_whose_server_is_lost_is_an_error_and_the_next_test_finds_the_template(
    project: Project,
    place: Place,
    shop: Open,
    truth: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D12: what was put aside may be gone, so nothing goes on as if it were there."""
    with lasting(shop()).clone("gw0", "r") as clone:
        for step in ("putting aside", "dropped"):
            place.struck = 0
            with clone.isolated("truncate", "a test") as test:
                test.execute("INSERT INTO item (name) VALUES ('new')")
                if step == "dropped":
                    test.snapshot("here")
                at(step, place.once, monkeypatch.setattr)
                with pytest.raises(Error):
                    test.snapshot("here") if step == "putting aside" else test.restore("here")
                monkeypatch.undo()
            unharmed(clone, "truncate", truth)


def test_a_connection_that_is_cut_while_nobody_needs_it_is_found_at_the_end(
    project: Project, place: Place, shop: Open, truth: dict[str, str]
) -> None:
    """E3: only the administrative one, which a rollback never uses; its clone is dropped all the
    same."""
    server = shop()
    template = lasting(server)
    with template.clone("gw0", "r") as clone:
        with clone.isolated("rollback", "a test"):
            with shop().connect("postgres", "other") as other:
                other.execute(
                    "SELECT pg_terminate_backend(%s, 10000)", [server.connection.info.backend_pid]
                )
    assert project.clones(shop()) == []
