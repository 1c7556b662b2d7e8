"""Prune: what nobody living owns is dropped, templates have their time, and everything else is left
alone."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.cli.scratch import scratch, temporary_scratch
from dbclone.databases import copying, ddl
from dbclone.databases.naming import Database, Mark, build_name, clone_name, limit_for
from dbclone.databases.prune import prune
from dbclone.errors import NotOwned
from dbclone.server.dsn import Dsn
from dbclone.server.locks import Leases
from dbclone.server.server import Server
from dbclone.template.template import Template

from ...conftest import Open, Project
from ...faults.stops import close

DAY = 86400.0


def ensure(server: Server, schema: str = "") -> Template:
    if schema:
        (server.settings.root / "schema.sql").write_text(schema)
    return Template.ensure(server, handles.load(server.settings)[0])


def leftover(server: Server, name: str, kind: str = "clone", **values: object) -> str:
    """Make what a dead run leaves: a database with its mark and without a lease."""
    mark = replace(Mark.make(kind, server.settings.project, server.facts.system), **values)  # type: ignore[arg-type]
    ddl.create(server, name, "template0", mark)
    return name


def plain(server: Server, name: str, comment: str, options: str = "") -> str:
    server.connection.execute(
        sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(options))
    )
    if comment:
        server.connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(name), sql.Literal(comment)
            )
        )
    return name


def limited(server: Server, name: str, comment: str = "") -> str:
    """Make what is there between CREATE DATABASE and COMMENT."""
    return plain(server, name, comment, f"CONNECTION LIMIT {limit_for(name, server.facts.system)}")


def names(pruned: list[tuple[Database, str]]) -> dict[str, str]:
    return {database.name: reason for database, reason in pruned}


def test_sixty_four_leftovers_are_swept_at_once_and_a_dry_run_only_tells_of_them(
    project: Project, shop: Open
) -> None:
    """E4."""
    server = shop()
    left = [
        leftover(server, clone_name(project.name, "dead", f"gw{number}")) for number in range(64)
    ]
    told = names(prune(server, dry_run=True))
    assert {name: told[name] for name in left} == dict.fromkeys(left, "clone whose owner is gone")
    assert project.databases(server) == sorted(left)
    assert set(names(prune(server))) >= set(left)
    assert project.databases(server) == []


def test_what_there_is_no_time_for_is_left_to_the_next_prune(project: Project, shop: Open) -> None:
    server = shop()
    left = leftover(server, build_name(project.name), "build")
    assert prune(server, budget=-1.0) == []
    assert project.databases(server) == [left]
    assert names(prune(server))[left] == "build whose owner is gone"


def test_two_live_runs_and_a_prune_of_everything_do_not_disturb_each_other(
    project: Project, shop: Open
) -> None:
    """E5, E7: life is a lease in the server; clocks and marks that lie about pid, host and time
    change nothing."""
    one, two, pruner = ensure(shop()), ensure(shop()), shop(retain_days="0", retain_templates="1")
    with one.clone("gw0", "one") as first, two.clone("gw0", "two") as second:
        for clone in (first, second):
            found = ddl.find(pruner, clone.name)
            assert found is not None
            assert found.mark is not None
            assert found.sessions == 0
            ddl.comment(
                pruner,
                clone.name,
                replace(found.mark, pid=1, host="elsewhere", created=1.0, used=1.0),
            )
        before = project.databases(pruner)
        for everything in (False, True):
            for dry_run in (True, False):
                assert set(names(prune(pruner, everything=everything, dry_run=dry_run))).isdisjoint(
                    before
                )
        assert project.databases(pruner) == before
    for template in (one, two):
        close(template.server, pruner)
    prune(pruner, everything=True)
    assert project.databases(pruner) == []


def test_a_lease_that_is_taken_while_a_prune_decides_still_saves_its_database(
    project: Project, shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E5: what was dead when the leases were listed may have an owner when its turn comes."""
    template, pruner = ensure(shop()), shop()
    with template.clone() as clone:
        monkeypatch.setattr(Leases, "held", lambda self: set())
        assert clone.name in names(prune(pruner, template.name, dry_run=True))
        assert clone.name not in names(prune(pruner, template.name))
        monkeypatch.undo()
        assert project.clones(pruner) == [clone.name]


def test_a_template_that_a_run_has_only_found_is_in_use_all_the_same(
    project: Project, shop: Open
) -> None:
    pruner = shop()
    close(ensure(shop()).server, pruner)
    template = ensure(shop())
    assert not template.built
    for dry_run in (True, False):
        assert template.name not in names(prune(pruner, everything=True, dry_run=dry_run))
    close(template.server, pruner)
    assert template.name in names(prune(pruner, everything=True))


def test_a_leftover_with_somebody_in_it_stays_until_it_has_left(
    project: Project, shop: Open
) -> None:
    """B9, S17: never FORCE on another run's database."""
    server = shop()
    left = leftover(server, clone_name(project.name, "dead", "gw0"))
    with server.connect(left, "visitor") as visitor:
        assert left not in names(prune(server))
        visitor.execute("SELECT 1")
    assert project.databases(server) == [left]


def test_look_alikes_are_never_touched_and_ours_among_them_are_found(
    project: Project, server: Server, shop: Open, role: Dsn
) -> None:
    """E13, S16, promise 1: every decoy fails one condition only."""
    own = shop()
    good = Mark.make("clone", project.name, own.facts.system)

    def name() -> str:
        return build_name(project.name)

    with Server.open(replace(own.settings, url=role.url)) as other:
        decoys = [
            plain(own, name(), ""),
            plain(own, name(), "please keep"),
            limited(own, name(), "please keep"),
            plain(own, name(), replace(good, system="another server").text()),
            plain(own, name(), good.text()[:-1]),
            leftover(other, name()),
            limited(other, name()),
            plain(own, name().replace("dbclone_", "dbclones_"), good.text()),
            plain(own, name().upper(), good.text()),
        ]
        ours = [leftover(own, name()), limited(own, name())]
        for everything in (False, True):
            pruned = names(prune(own, everything=everything))
            assert set(pruned).isdisjoint([*decoys, "postgres", "template0", "template1"])
            assert everything or set(ours) <= set(pruned)
    there = {each for (each,) in own.fetch("SELECT datname::text FROM pg_database")}
    assert there >= {*decoys, "postgres", "template0", "template1"}
    assert there.isdisjoint(ours)
    for decoy in decoys:
        server.connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(decoy)))


def test_the_newest_templates_of_a_project_are_kept_by_number(project: Project, shop: Open) -> None:
    made = [ensure(shop(), f"CREATE TABLE item_{number} ();") for number in range(4)]
    pruner = shop(retain_templates="2")
    for dry_run in (True, False):
        pruned = names(prune(pruner, made[-1].name, dry_run=dry_run))
        assert pruned.keys().isdisjoint(t.name for t in made), "living runs use all of them"
    for template in made:
        close(template.server, pruner)
    pruned = names(prune(pruner, made[-1].name))
    assert [t.name for t in made if t.name in pruned] == [made[0].name, made[1].name]
    assert pruned[made[0].name] == "template number 4 of this project, 2 are kept"
    assert project.databases(pruner) == sorted([made[2].name, made[3].name])


def test_templates_that_nobody_used_for_long_are_dropped_and_use_is_noted(
    project: Project, shop: Open
) -> None:
    """S21."""
    old, current = ensure(shop(), "CREATE TABLE old ();"), ensure(shop(), "CREATE TABLE new ();")
    server = current.server
    assert old.database.mark is not None
    long_ago = round(time.time() - 15 * DAY, 3)
    ddl.comment(server, old.name, replace(old.database.mark, used=long_ago))
    assert old.name not in names(prune(server, current.name)), "a living run uses it"
    close(old.server, server)
    assert (
        names(prune(server, current.name, dry_run=True))[old.name] == "template unused for 15 days"
    )
    close(ensure(shop(), "CREATE TABLE old ();").server, server)
    assert old.name not in names(prune(server, current.name)), "it has just been used"
    ddl.comment(server, old.name, replace(old.database.mark, used=long_ago))
    assert old.name in names(prune(server, current.name))
    assert project.databases(server) == [current.name]


def test_warm_clones_go_with_their_template(project: Project, shop: Open) -> None:
    template = ensure(shop())
    assert copying.warm(template.server, template.database, 2) == 2
    pruner = shop(retain_days="0", retain_templates="1")
    prune(pruner, template.name)
    assert len(project.databases(pruner)) == 3
    close(template.server, pruner)
    prune(pruner)
    prune(pruner)
    assert project.databases(pruner) == []


def test_an_interrupted_drop_is_finished_by_prune(project: Project, shop: Open) -> None:
    """B13."""
    server = shop()
    left = leftover(server, clone_name(project.name, "dead", "gw0"))
    server.fetch("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s RETURNING 1", [left])
    assert left in names(prune(server))
    assert project.databases(server) == []


def test_a_scratch_clone_stays_for_a_day(project: Project, shop: Open) -> None:
    server = shop()
    made = scratch(server, server.settings)
    assert scratch(server, server.settings, made) == made
    assert made not in names(prune(server))
    found = ddl.find(server, made)
    assert found is not None
    assert found.mark is not None
    assert found.mark.kind == "scratch"
    ddl.comment(server, made, replace(found.mark, created=time.time() - DAY - 60))
    assert names(prune(server))[made] == "scratch clone older than a day"
    with temporary_scratch(server, server.settings) as passing:
        assert passing in project.clones(server)
    assert project.clones(server) == []


@pytest.mark.parametrize("name", ["postgres", "template1", "dbclone_there_is_no_such"])
def test_scratch_leads_into_no_database_that_is_not_ours(name: str, shop: Open) -> None:
    server = shop()
    with pytest.raises(NotOwned, match="not a database of dbclone"):
        scratch(server, server.settings, name)


@pytest.mark.parametrize("kind", ["spare", "scratch"])
def test_what_is_being_made_is_not_a_leftover(
    kind: str, project: Project, shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between CREATE DATABASE and COMMENT it has no mark yet, and another run prunes at this very
    moment."""
    template, pruner = ensure(shop()), shop()
    real, pruned = ddl.comment, []

    def comment(server: Server, name: str, mark: Mark) -> None:
        if mark.kind == kind:
            pruned.append(names(prune(pruner, template.name)))
            assert name in project.clones(pruner)
        real(server, name, mark)

    monkeypatch.setattr(ddl, "comment", comment)
    if kind == "spare":
        copying.warm(template.server, template.database, 1)
    else:
        scratch(template.server, template.server.settings)
    assert len(pruned) == 1
    assert len(project.clones(pruner)) == 1
