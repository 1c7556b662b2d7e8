"""`doctor` on a server that is not dbclone's own: durable, with a library that connects by itself,
and with logical replication."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbclone.adapters import handles
from dbclone.databases import ddl
from dbclone.databases.prune import prune
from dbclone.server.private import cluster
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ... import developer
from ...conftest import Project
from ...faults.stops import until
from ...private import own_server, public_folder

SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "4",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, options: dict[str, str]) -> Iterator[str]:
    """A durable server that has loaded another library under the name of timescaledb."""
    with contextlib.ExitStack() as stack:
        settings = stack.enter_context(own_server(tmp_path_factory.mktemp("elsewhere"), options))
        folder, patch = (
            stack.enter_context(public_folder()),
            stack.enter_context(pytest.MonkeyPatch.context()),
        )
        located = Embedded.locate(settings)
        located._prepare_folders(settings)
        library = next(located.cluster.binaries.folder.parent.rglob("auto_explain.so"))
        shutil.copy(library, folder / "timescaledb.so")
        for name, value in {
            **SETTINGS,
            "shared_preload_libraries": str(folder / "timescaledb"),
        }.items():
            patch.setitem(cluster._THROW_AWAY, name, value)
        located.cluster.init()
        process = located.cluster.start(60)
        stack.callback(process.wait)
        stack.callback(located.cluster.stop)
        stack.enter_context(developer.databases(located.dsn.url))
        yield located.dsn.url


@pytest.fixture
def elsewhere(url: str, tmp_path: Path, options: dict[str, str]) -> Iterator[Server]:
    with Server.open(load(tmp_path, {**options, "url": url, "name": "elsewhere"}, {})) as opened:
        yield opened
        prune(opened, everything=True)


def schema_of_one_table(url: str) -> None:
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("CREATE TABLE t (id int)")


def checks(
    project: Project, url: str, *words: str
) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """Run doctor there, on which nothing will fail; return its checks by name, and all facts."""
    done = project.run("dbclone", "doctor", "--json", "--url", url, *words, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    return {check["name"]: check for check in facts["checks"]}, facts


def test_what_durability_costs_is_said_with_the_settings_that_remove_it(
    project: Project, url: str, elsewhere: Server
) -> None:
    before = ddl.list_databases(elsewhere)
    found, facts = checks(project, url)
    assert found["durability"]["verdict"] == "slow"
    assert "fsync = on" in found["durability"]["why"]
    assert found["orphaned files"]["verdict"] == "not checked"
    measures, text = facts["measures"], "\n".join(facts["advice"])
    assert measures["durability_per_run"] == pytest.approx(
        max(0, measures["commit"] - measures["commit_undurable"]) * 200 * 4
    )
    assert "for a throw-away server ONLY" in text
    assert f"    image: postgres:{elsewhere.facts.major}" in text
    data = "/var/lib/postgresql" if elsewhere.facts.major >= 18 else "/var/lib/postgresql/data"
    assert f"    tmpfs: {data}\n" in text
    for name, value in (
        ("fsync", "off"),
        ("synchronous_commit", "off"),
        ("full_page_writes", "off"),
    ):
        assert f"-c {name}={value}" in text
    assert ddl.list_databases(elsewhere) == before, "a scratch database was left"


def test_a_worker_that_sits_in_the_template_is_ended_and_its_extension_named(
    project: Project, url: str, elsewhere: Server
) -> None:
    """A11: such a worker is a session of another role that is there as soon as the database is."""
    elsewhere.connection.execute("CREATE ROLE launcher LOGIN SUPERUSER")
    sitting: list[psycopg.Connection[Any]] = []

    def schema(url: str) -> None:
        sitting.append(psycopg.connect(url, user="launcher", autocommit=True))
        sitting[0].execute("CREATE TABLE t (id int)")

    try:
        with Template.ensure(
            Server.open(elsewhere.settings), handles.load(elsewhere.settings, schema)[0]
        ) as template:
            with pytest.raises(psycopg.OperationalError):
                sitting[0].execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(elsewhere.database(template.name).url, user="launcher")
            with template.clone() as clone, clone.connect() as connection:
                assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        found, _ = checks(project, url, "--no-measures")
        assert found["background workers"]["verdict"] == "warning"
        assert "timescaledb is preloaded" in found["background workers"]["why"]
        assert "shared_preload_libraries" in found["background workers"]["to_do"]
    finally:
        for connection in sitting:
            connection.close()
        with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
            connection.execute("REASSIGN OWNED BY launcher TO postgres")
            connection.execute("ALTER ROLE launcher NOLOGIN")


@pytest.fixture
def replicating(elsewhere: Server) -> Iterator[tuple[Server, str]]:
    """A clone with a logical slot, a subscription and a prepared transaction, and the server
    through which it was made."""
    run = Server.open(elsewhere.settings)
    with run:
        template = Template.ensure(run, handles.load(run.settings, schema_of_one_table)[0])
        clone = template.clone()
        with contextlib.closing(clone.connect(autocommit=True)) as connection:
            connection.execute("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')")
            connection.execute(
                "CREATE SUBSCRIPTION news CONNECTION 'dbname=nowhere' PUBLICATION p WITH"
                " (connect = false)"
            )
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("PREPARE TRANSACTION 'later'")
        until(
            lambda: (
                not elsewhere.fetch("SELECT FROM pg_stat_activity WHERE datname = %s", [clone.name])
            )
        )
        yield run, clone.name


def left(server: Server, name: str) -> list[tuple[Any, ...]]:
    return server.fetch(
        "SELECT slot_name::text FROM pg_replication_slots UNION ALL SELECT subname::text"
        " FROM pg_subscription"
        " UNION ALL SELECT gid FROM pg_prepared_xacts UNION ALL SELECT datname::text FROM"
        " pg_database WHERE datname = %s",
        [name],
    )


def test_slots_and_subscriptions_are_named_and_do_not_keep_a_dead_clone(
    project: Project, url: str, elsewhere: Server, replicating: tuple[Server, str]
) -> None:
    """B12: after its run is dead, `prune` drops the clone with all that."""
    run, name = replicating
    found, _ = checks(project, url, "--no-measures")
    assert found["what outlives sessions"]["verdict"] == "warning"
    for text in (
        f"slot 'changes' in {name}",
        f"subscription 'news' in {name}",
        f"prepared transaction 'later' in {name}",
    ):
        assert text in found["what outlives sessions"]["why"]
    run.close()
    until(
        lambda: (
            not elsewhere.fetch(
                "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
        )
    )
    assert project.run("dbclone", "prune", "--url", url).returncode == 0
    assert left(elsewhere, name) == []


def test_a_clone_is_dropped_though_somebody_reads_from_its_slot(
    elsewhere: Server, replicating: tuple[Server, str]
) -> None:
    """B12: our own clone, so that whoever reads from it is ended."""
    _, name = replicating
    reader = psycopg.connect(elsewhere.database(name).url, replication="database", autocommit=True)
    try:
        reader.pgconn.send_query(
            b"START_REPLICATION SLOT changes LOGICAL 0/0 (proto_version '1', publication_names 'p')"
        )
        until(lambda: bool(elsewhere.fetch("SELECT FROM pg_replication_slots WHERE active")))
        database = ddl.find(elsewhere, name)
        assert database is not None
        ddl.drop(elsewhere, database, force=True)
    finally:
        reader.close()
    assert left(elsewhere, name) == []
