"""Whatever destroys meets every database that could be mistaken for one of dbclone's, and leaves it
alone."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.cli.scratch import scratch
from dbclone.clone.clone import Clone
from dbclone.databases import copying, ddl
from dbclone.databases.naming import (
    Database,
    Mark,
    build_name,
    clone_name,
    limit_for,
    spare_name,
    template_name,
)
from dbclone.databases.prune import prune
from dbclone.errors import NotOwned
from dbclone.reset.base import Task
from dbclone.reset.rebuild import Rebuild
from dbclone.server.server import Server
from dbclone.settings import Settings, load
from dbclone.template.builder import full_manifest
from dbclone.template.template import Template

from ..decoys import FOREIGN, OTHER_VERSIONS, WAYS, Stage, Way, logging


@pytest.fixture(scope="module")
def log(server: Server) -> Iterator[Path]:
    with logging(server) as file:
        yield file


@pytest.fixture(scope="module")
def own(
    server: Server, options: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    folder = tmp_path_factory.mktemp("decoys")
    (folder / "schema.sql").write_text("CREATE TABLE item (id int PRIMARY KEY);")
    return load(
        folder,
        {
            **options,
            "name": f"decoys{uuid.uuid4().hex[:6]}",
            "schema": "schema.sql",
            "retain_days": "0",
        },
        {},
    )


@pytest.fixture(scope="module")
def template(own: Settings, server: Server, log: Path) -> Iterator[Template]:
    server.connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(FOREIGN)))
    with Server.open(own) as opened:
        yield Template.ensure(opened, handles.load(own)[0])
        prune(opened)
    server.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(FOREIGN)))


@pytest.fixture
def stage(template: Template, log: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    way = WAYS[request.param]
    made = Stage(template.server, template, way, log)
    yield made
    made.clear()


every_way = pytest.mark.parametrize("stage", WAYS, indirect=True)


def believed(stage: Stage) -> Database:
    """Return the decoy as somebody would see it who was deceived about everything but its oid."""
    found = ddl.find(stage.server, stage.name)
    assert found is not None
    mark = good(stage).bound(stage.name, found.oid)
    return replace(
        found, own=True, mark=mark, comment=mark.text(), limit=limit_for(stage.name, mark.system)
    )


def good(stage: Stage) -> Mark:
    return Mark.make("clone", stage.server.settings.project, stage.server.facts.system)


@every_way
def test_drop(stage: Stage) -> None:
    """S1, S16, S17: whatever the caller believes, and whether sessions are to be ended or not."""
    stage.put(build_name("decoys"))
    for force in (False, True):
        with pytest.raises(NotOwned, match="left alone"):
            ddl.drop(stage.server, believed(stage), force)
    stage.untouched()


@every_way
@pytest.mark.parametrize("kind", ["clone", "template", "spare", "build"])
def test_prune_and_prune_of_everything(stage: Stage, kind: str) -> None:
    """S1, S16: no lease is held and nobody is in it, so that nothing but the missing proof saves
    it."""
    project = stage.server.settings.project
    names = {
        "clone": clone_name(project, "dead", uuid.uuid4().hex),
        "template": template_name(project, uuid.uuid4().hex),
        "spare": spare_name(project),
        "build": build_name(project),
    }
    stage.put(names[kind], kind, watched=False)
    for everything in (False, True):
        assert stage.name not in {
            database.name for database, _ in prune(stage.server, everything=everything)
        }
    stage.untouched()


def reset(name: str) -> Callable[[Clone], None]:
    def act(clone: Clone) -> None:
        with clone.isolated(name, "test"):
            pass

    return act


ACTS: dict[str, Callable[[Clone], object]] = {
    "truncate": reset("truncate"),
    "clone": reset("clone"),
    "replace": lambda clone: clone.replace("a test"),
    "swap": lambda clone: clone.replace("a test"),
    "restore": lambda clone: clone.restore("label"),
    "drop": lambda clone: Rebuild(clone, Task()).undo(),
}


@every_way
@pytest.mark.parametrize("act", ACTS)
def test_a_clone_whose_name_leads_elsewhere_is_neither_reset_nor_replaced_nor_dropped(
    stage: Stage, act: str
) -> None:
    """S1, S2: truncate, drop, clone, a swap with the warm pool, the restore of a snapshot; and the
    end of the clone."""
    clone = stage.template.clone("gw0")
    try:
        if act == "restore":
            clone.snapshot("label")
        elif act == "swap":
            clone.replace(
                "a test", often=True
            )  # so that the pool knows the oid of what has the name
        stage.put_for(clone)
        with pytest.raises(NotOwned, match="left alone"):
            ACTS[act](clone)
        stage.untouched()
    finally:
        clone.drop()
    stage.untouched()


@every_way
def test_a_snapshot_that_has_become_another_database_is_not_dropped(stage: Stage) -> None:
    """S1: taking a snapshot again replaces the one of that label."""
    with stage.template.clone("gw0") as clone:
        clone.snapshot("label")
        taken = clone._snapshots._taken["label"]
        ddl.drop(stage.server, believe(stage.server, taken))
        stage.put(taken)
        with pytest.raises(NotOwned, match="left alone"):
            clone.snapshot("label")
        stage.untouched()


def believe(server: Server, name: str) -> Database:
    found = ddl.find(server, name)
    assert found is not None
    return found


@every_way
def test_a_clone_does_not_take_the_place_of_what_has_its_name(stage: Stage) -> None:
    """S1: a leftover of a dead worker of this very run would be dropped."""
    stage.put(clone_name(stage.server.settings.project, "run", "gw0"))
    with pytest.raises(NotOwned, match="left alone"):
        stage.template.clone("gw0", "run")
    stage.untouched()


@pytest.mark.parametrize("stage", [way for way in WAYS if way not in OTHER_VERSIONS], indirect=True)
@pytest.mark.parametrize("rebuild", [False, True])
def test_what_has_the_name_of_our_template_is_neither_adopted_nor_replaced(
    stage: Stage, rebuild: bool
) -> None:
    """S1, S15: nobody else's functions and triggers get into our tests by a name that anybody can
    compute."""
    schema = handles.load(replace(stage.server.settings, inputs=("nothing",)))[0]
    (stage.server.settings.root / "schema.sql").write_text(
        f"CREATE TABLE item_{uuid.uuid4().hex} ();"
    )
    manifest = full_manifest(stage.server, schema)
    stage.put(template_name(stage.server.settings.project, manifest.fingerprint), "template")
    with pytest.raises(NotOwned, match="has the name of our template and is not one"):
        Template.ensure(stage.server, schema, rebuild=rebuild)
    stage.untouched()


@pytest.mark.parametrize("stage", OTHER_VERSIONS, indirect=True)
@pytest.mark.parametrize("rebuild", [False, True])
def test_beside_the_template_of_another_version_one_of_ours_is_built(
    stage: Stage, rebuild: bool
) -> None:
    """S1: of which that version may be making clones at this moment."""
    schema = handles.load(replace(stage.server.settings, inputs=("nothing",)))[0]
    (stage.server.settings.root / "schema.sql").write_text(
        f"CREATE TABLE item_{uuid.uuid4().hex} ();"
    )
    manifest = full_manifest(stage.server, schema)
    stage.put(template_name(stage.server.settings.project, manifest.fingerprint), "template")
    assert Template.ensure(stage.server, schema, rebuild=rebuild).name != stage.name
    stage.untouched()


@every_way
def test_a_warm_clone_of_strangers_is_not_claimed(stage: Stage) -> None:
    """S15: whoever may make a database could offer one with the right oid in its mark."""
    project = stage.server.settings.project
    stage.put(spare_name(project), "spare", watched=False)
    name = clone_name(project, "run", uuid.uuid4().hex)
    assert not copying.claim_warm_clone(stage.server, stage.template.database, name, good(stage))
    stage.untouched()


@every_way
def test_a_warm_clone_that_has_become_another_database_is_not_handed_over(stage: Stage) -> None:
    """S1: between its making and its use."""
    stage.put(spare_name("decoys"), "spare", watched=False)
    name = clone_name("decoys", "run", uuid.uuid4().hex)
    oid = believe(stage.server, stage.name).oid
    with pytest.raises(psycopg.errors.InvalidCatalogName, match="another database now"):
        copying.HandOver.compose(stage.server, stage.name, oid + 1, name, good(stage)).run(
            stage.server
        )
    assert stage._state() == stage._before


STATEMENTS: dict[str, Callable[[Server, str, str, Mark], object]] = {
    "seal": lambda server, name, other, mark: ddl.seal(server, name, mark),
    "rename": lambda server, name, other, mark: ddl.rename(server, name, other),
    "step aside": lambda server, name, other, mark: ddl.swap(server, name, other, name),
    "close": lambda server, name, other, mark: ddl.close_to_others(server, name),
    "carry over": lambda server, name, other, mark: ddl.carry_over(server, "postgres", name),
}


@every_way
def test_no_statement_that_changes_a_database_is_sent(stage: Stage) -> None:
    """S1, S17: seal, rename, swap, close and end sessions; the grants of another database."""
    stage.put(build_name("decoys"))
    server = stage.server
    for statement in STATEMENTS.values():
        with granted(server), pytest.raises(NotOwned, match="left alone"):
            statement(server, stage.name, build_name("decoys"), good(stage))
    stage.untouched()


@contextlib.contextmanager
def granted(server: Server) -> Iterator[None]:
    """Give the maintenance database a setting to carry over, for the block."""
    server.connection.execute("ALTER DATABASE postgres SET decoys.set = 'on'")
    try:
        yield
    finally:
        server.connection.execute("ALTER DATABASE postgres RESET decoys.set")


@pytest.mark.parametrize("name", ["postgres", "template0", "template1"])
def test_the_server_s_own_databases_are_refused_whatever_they_say_of_themselves(
    name: str, template: Template
) -> None:
    """S1, S3: even with our mark for this very server in their comments."""
    server = template.server
    mark = Mark.make("clone", server.settings.project, server.facts.system)
    query = "SELECT oid::int8, datallowconn, datistemplate, datconnlimit FROM pg_database WHERE datname = %s"
    ((oid, *_),) = before = server.fetch(query, [name])
    comment = sql.SQL("COMMENT ON DATABASE {} IS {}")
    ((was,),) = server.fetch("SELECT shobj_description(%s, 'pg_database')", [oid])
    mark = mark.bound(name, oid)
    server.connection.execute(comment.format(sql.Identifier(name), sql.Literal(mark.text())))
    try:
        for statement in STATEMENTS.values():
            with granted(server), pytest.raises(NotOwned, match="not one that dbclone gives"):
                statement(server, name, build_name("decoys"), mark)
        with pytest.raises(NotOwned, match="not one that dbclone gives"):
            ddl.drop(
                server,
                Database(
                    oid, name, True, False, limit_for(name, mark.system), 0, 0, mark, mark.text()
                ),
                True,
            )
        with pytest.raises(NotOwned):
            scratch(server, server.settings, name)
        assert server.fetch(query, [name]) == before
    finally:
        server.connection.execute(comment.format(sql.Identifier(name), sql.Literal(was)))


def test_the_table_of_ways_is_not_empty_of_right_ones(template: Template, log: Path) -> None:
    """What these tests would say of dbclone's own: a right mark in the same place is dropped, so it
    is the decoys' fault."""
    stage = Stage(template.server, template, Way(lambda mark: mark.text(), limited=True), log)
    stage.put(build_name("decoys"))
    ddl.drop(stage.server, believed(stage), force=True)
    with pytest.raises(AssertionError):
        stage.untouched()
    stage.clear()
