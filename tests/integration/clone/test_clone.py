"""A clone: its name, its lease, what it holds, and how many are made at once."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.databases import copying, ddl
from dbclone.databases.naming import clone_name
from dbclone.databases.prune import prune
from dbclone.errors import TemplateError
from dbclone.server.locks import Leases
from dbclone.server.server import Server
from dbclone.template.template import Template

from ...conftest import Open, Project
from ...faults.stops import ended

SCHEMA = """
CREATE TABLE item (id serial PRIMARY KEY, name text);
INSERT INTO item (name) SELECT 'item ' || n FROM generate_series(1, 100) n;
"""


@pytest.fixture
def shop_project(project: Project) -> Project:
    return project.sql(SCHEMA)


def ensure(server: Server) -> Template:
    return Template.ensure(server, handles.load(server.settings)[0])


def oid(server: Server, name: str) -> int:
    found = ddl.find(server, name)
    assert found is not None
    return found.oid


def items(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM item").fetchone()
    assert found is not None
    return int(found[0])


def test_a_clone_has_the_name_that_everybody_computes_from_run_and_owner(
    project: Project, shop: Open
) -> None:
    template = ensure(shop())
    with template.clone("gw3", "run 1") as clone:
        assert clone.name == clone_name(project.name, "run 1", "gw3")
        assert project.clones(template.server) == [clone.name]
        mark = ddl.list_databases(template.server, clone.name)[0].mark
        assert mark is not None
        assert (mark.kind, mark.run, mark.worker) == ("clone", "run 1", "gw3")
        assert items(clone.url) == 100
    assert project.clones(template.server) == []


def test_a_run_without_a_name_gets_one_of_its_own(shop: Open) -> None:
    template = ensure(shop())
    with template.clone() as one, template.clone() as other:
        assert one.name != other.name


@pytest.mark.parametrize("same_process", [False, True], ids=["another session", "the same session"])
def test_a_second_owner_of_the_same_name_is_refused_and_the_first_one_keeps_its_database(
    same_process: bool, shop: Open
) -> None:
    """A session gets an advisory lock twice; the second clone must not drop the first one's
    database for that."""
    template = ensure(shop())
    other = template if same_process else ensure(shop())
    with template.clone("gw0", "r") as clone:
        with clone.connect(autocommit=True) as connection:
            connection.execute("DELETE FROM item WHERE id > 7")
        with pytest.raises(TemplateError, match="in use by another process") as caught:
            other.clone("gw0", "r")
        assert (
            f"server process {template.server.connection.info.backend_pid}" in caught.value.detail
        )
        assert items(clone.url) == 7
    with other.clone("gw0", "r") as clone:
        assert items(clone.url) == 100


def test_a_refused_owner_does_not_keep_the_name_busy(shop: Open) -> None:
    template, other = ensure(shop()), ensure(shop())
    with template.clone("gw0", "r"), pytest.raises(TemplateError):
        other.clone("gw0", "r")
    with template.clone("gw0", "r") as clone:
        assert items(clone.url) == 100


def test_a_replaced_clone_has_its_url_and_all_its_rows_again(shop: Open) -> None:
    with ensure(shop()).clone() as clone:
        before = clone.url
        with psycopg.connect(clone.url, autocommit=True) as held:
            held.execute("DROP TABLE item")
            clone.replace("a test dropped a table")
            assert (clone.url, items(clone.url)) == (before, 100)


def test_a_clone_is_dropped_although_sessions_are_open_in_it(project: Project, shop: Open) -> None:
    """B9."""
    template = ensure(shop())
    with template.clone() as clone:
        held = psycopg.connect(clone.url)
        held.execute("LOCK TABLE item")
    assert project.clones(template.server) == []
    with pytest.raises(psycopg.OperationalError):
        held.execute("SELECT 1")
    held.close()


def test_a_clone_that_lost_its_mark_is_left_alone_with_a_warning(
    project: Project, shop: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A test wrote COMMENT ON DATABASE: that must not fail the run at its end, nor be a licence to
    drop."""
    template = ensure(shop())
    with template.clone() as clone:
        statement = sql.SQL("COMMENT ON DATABASE {} IS 'shop'").format(sql.Identifier(clone.name))
        template.server.connection.execute(statement)
    assert project.clones(template.server) == [clone.name]
    assert "its comment is not dbclone's" in caplog.text
    assert template.server.leases.acquire(clone.name)
    template.server.connection.execute(
        sql.SQL("DROP DATABASE {}").format(sql.Identifier(clone.name))
    )


def test_a_warm_clone_is_taken_and_equal_to_a_cold_one(project: Project, shop: Open) -> None:
    server = shop()
    (project.folder / "schema.sql").write_text(
        f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET my.setting = 7',"
        f" current_database()); END $$; {SCHEMA}"
    )
    template = ensure(server)
    assert copying.warm(server, template.database, 1) == 1
    assert copying.warm(server, template.database, 1) == 0
    (spare,) = project.clones(server)
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(server.database(spare).url)
    before = oid(server, spare)
    with template.clone("gw0", "r") as warm, template.clone("gw1", "r") as cold:
        assert (oid(server, warm.name) == before, oid(server, cold.name) == before) == (True, False)
        for clone in (warm, cold):
            assert items(clone.url) == 100
            with clone.connect() as connection:
                assert connection.execute("SHOW my.setting").fetchone() == ("7",)
        mark = ddl.list_databases(server, warm.name)[0].mark
        assert mark is not None
        assert (mark.kind, mark.worker) == ("clone", "gw0")


def test_a_warm_clone_that_is_still_being_made_is_not_taken(
    project: Project, shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its mark before it has the template's settings; its lease says that it is not ready."""
    maker, taker = ensure(shop()), ensure(shop())
    real, claims = ddl.carry_over, []

    def carry_over(server: Server, source: str, target: str) -> None:
        if server is maker.server:
            mark = ddl.list_databases(server, target)[0].mark
            assert mark is not None
            claims.append(
                copying.claim_warm_clone(
                    taker.server, taker.database, clone_name(project.name, "r", "gw0"), mark
                )
            )
        real(server, source, target)

    monkeypatch.setattr(ddl, "carry_over", carry_over)
    copying.warm(maker.server, maker.database, 1)
    assert claims == [False]
    (spare,) = project.clones(maker.server)
    before = oid(maker.server, spare)
    with taker.clone("gw0", "r") as clone:
        assert oid(taker.server, clone.name) == before


def test_no_more_than_clone_limit_are_copied_at_once(
    project: Project, shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: six want a clone, two may copy at a time; the copies cannot end before all six are there."""
    templates = [ensure(shop(clone_limit="2")) for _ in range(6)]
    arrived, everybody = threading.Semaphore(0), threading.Event()
    lock, now, most = threading.Lock(), 0, 0
    slot, create = Leases.slot, ddl.create
    tries: dict[int, int] = {}

    def arriving(self: Leases, *arguments: Any, **named: Any) -> Any:
        arrived.release()
        return slot(self, *arguments, **named)

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if most > 2:
                everybody.set()
        assert everybody.wait(60)
        made = create(*arguments, **named)
        with lock:
            now -= 1
        return made

    attempt = Leases._try_lock

    def trying(self: Leases, key: int, shared: bool = False) -> bool:
        tries[id(self)] = tries.get(id(self), 0) + 1
        if (
            len(tries) == 6 and sorted(tries.values())[2] > 6
        ):  # four of the six were refused both places, three times over
            everybody.set()
        return attempt(self, key, shared)

    monkeypatch.setattr(Leases, "slot", arriving)
    monkeypatch.setattr(Leases, "_try_lock", trying)
    monkeypatch.setattr(ddl, "create", counting)
    made: list[str] = []
    threads = [threading.Thread(target=lambda t=t: made.append(t.clone().name)) for t in templates]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert arrived.acquire(timeout=60)
    for thread in threads:
        thread.join()
    assert len(set(made)) == 6
    assert most == 2


def test_a_warm_clone_of_a_template_that_was_rebuilt_is_not_taken_but_pruned(
    project: Project, shop: Open
) -> None:
    """A rebuilt template has the same fingerprint; what was copied before may lack what made
    somebody ask for the rebuild."""
    server = shop()
    template = ensure(server)
    copying.warm(server, template.database, 1)
    (stale,) = project.clones(server)
    before = oid(server, stale)
    rebuilt = Template.ensure(server, handles.load(server.settings)[0], rebuild=True)
    with rebuilt.clone() as clone:
        assert oid(server, clone.name) != before
    assert copying.warm(server, rebuilt.database, 1) == 1
    assert stale in project.clones(server)
    prune(server, rebuilt.name)
    (fresh,) = project.clones(server)
    assert fresh != stale


def test_a_prepared_transaction_does_not_keep_a_clone_alive(project: Project, shop: Open) -> None:
    """B11: it outlives its session, and no FORCE ends it."""
    template = ensure(shop())
    for drop in (True, False):
        clone = template.clone("gw0", "r")
        with clone.connect() as connection:
            connection.execute("INSERT INTO item (name) VALUES ('prepared')")
            connection.execute(f"PREPARE TRANSACTION '{clone.name}'".encode())
            pid = connection.info.backend_pid
        ended(template.server, pid)
        if drop:
            clone.drop()
        else:
            template.server.leases.release(clone.name)
            prune(template.server, template.name)
        assert project.clones(template.server) == []
