"""What a user has made of a database of ours, or in its likeness, is his: no prune, and nothing
else, drops it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.cli.scratch import scratch
from dbclone.clone.clone import Clone
from dbclone.databases import ddl
from dbclone.databases.naming import Mark, build_name, clone_name, limit_for, spare_name
from dbclone.databases.prune import keep, prune
from dbclone.errors import NotOwned
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ...conftest import Project


@pytest.fixture
def template(project: Project, server: Server, options: dict[str, str]) -> Iterator[Template]:
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(
        "CREATE TABLE item (id int); INSERT INTO item VALUES (1);"
    )
    with Server.open(load(project.folder, {**options, "retain_days": "0"}, {})) as opened:
        yield Template.ensure(opened, handles.load(opened.settings)[0])


def run(server: Server, text: str, *parts: sql.Composable) -> None:
    server.connection.execute(sql.SQL(text).format(*parts))


def comment_of(server: Server, name: str) -> str:
    ((text,),) = server.fetch(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [name]
    )
    return str(text)


def old_scratch(template: Template) -> str:
    """Return a scratch clone that has had its day."""
    name = scratch(template.server, template.server.settings)
    found = ddl.find(template.server, name)
    assert found is not None
    assert found.mark is not None
    ddl.comment(template.server, name, replace(found.mark, created=1.0))
    return name


def renamed(template: Template) -> str:
    mine = f"dbclone_{template.server.settings.project}_mine_now"
    run(
        template.server,
        "ALTER DATABASE {} RENAME TO {}",
        sql.Identifier(old_scratch(template)),
        sql.Identifier(mine),
    )
    return mine


def renamed_like_ours(template: Template) -> str:
    mine = spare_name(template.server.settings.project)
    run(
        template.server,
        "ALTER DATABASE {} RENAME TO {}",
        sql.Identifier(old_scratch(template)),
        sql.Identifier(mine),
    )
    return mine


def with_a_copied_comment(template: Template) -> str:
    server, mine, ours = (
        template.server,
        build_name(template.server.settings.project),
        old_scratch(template),
    )
    run(server, "CREATE DATABASE {}", sql.Identifier(mine))
    run(
        server,
        "COMMENT ON DATABASE {} IS {}",
        sql.Identifier(mine),
        sql.Literal(comment_of(server, ours)),
    )
    prune(server, template.name)
    return mine


def restored(template: Template) -> str:
    """As from a dump of one of ours with its comment, under the name that it had: pg_dump --create
    gives both."""
    server, ours = template.server, old_scratch(template)
    text = comment_of(server, ours)
    found = ddl.find(server, ours)
    assert found is not None
    ddl.drop(server, found)
    run(
        server,
        "CREATE DATABASE {} CONNECTION LIMIT {}",
        sql.Identifier(ours),
        sql.Literal(found.limit),
    )
    run(server, "COMMENT ON DATABASE {} IS {}", sql.Identifier(ours), sql.Literal(text))
    return ours


def with_a_copied_limit(template: Template) -> str:
    server, mine = template.server, build_name(template.server.settings.project)
    limit = limit_for(old_scratch(template), server.facts.system)
    run(server, "CREATE DATABASE {} CONNECTION LIMIT {}", sql.Identifier(mine), sql.Literal(limit))
    return mine


def with_the_limit_of_old(template: Template) -> str:
    """As dbclone gave it to every database once."""
    mine = build_name(template.server.settings.project)
    run(template.server, "CREATE DATABASE {} CONNECTION LIMIT 1145193298", sql.Identifier(mine))
    return mine


def copied_from_ours(template: Template) -> str:
    """CREATE DATABASE … TEMPLATE: neither comment nor limit come along."""
    mine = build_name(template.server.settings.project)
    run(
        template.server,
        "CREATE DATABASE {} TEMPLATE {}",
        sql.Identifier(mine),
        sql.Identifier(template.name),
    )
    return mine


def freed_of_its_comment(template: Template) -> str:
    """The limit stays, and its name too; but it is open, and it was marked once."""
    ours = old_scratch(template)
    run(template.server, "ALTER DATABASE {} CONNECTION LIMIT -1", sql.Identifier(ours))
    run(template.server, "COMMENT ON DATABASE {} IS NULL", sql.Identifier(ours))
    return ours


TAKEN: list[Callable[[Template], str]] = [
    renamed,
    renamed_like_ours,
    with_a_copied_comment,
    restored,
    with_a_copied_limit,
    with_the_limit_of_old,
    copied_from_ours,
    freed_of_its_comment,
]


@pytest.mark.parametrize("take", TAKEN)
def test_what_a_user_has_taken_is_neither_pruned_nor_dropped_nor_touched(
    take: Callable[[Template], str], template: Template, server: Server
) -> None:
    name = take(template)
    try:
        with contextlib.closing(
            psycopg.connect(server.database(name).url, autocommit=True)
        ) as mine:
            mine.execute("CREATE TABLE work (id int); INSERT INTO work VALUES (42)")
        state = "SELECT oid, datallowconn, datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
        before = server.fetch(state, [name])
        found = ddl.find(template.server, name)
        assert found is not None
        with pytest.raises(NotOwned, match="left alone"):
            ddl.drop(template.server, found, force=True)
        for everything in (False, True):
            assert name not in {
                d.name for d, _ in prune(template.server, template.name, everything=everything)
            }
        with template.clone() as clone, clone.isolated("clone", "test"):
            pass
        template.tidy()
        assert server.fetch(state, [name]) == before
        with contextlib.closing(psycopg.connect(server.database(name).url)) as mine:
            assert mine.execute("SELECT id FROM work").fetchone() == (42,)
    finally:
        run(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", sql.Identifier(name))


def ours(server: Server, name: str) -> bool:
    """Return whether a database is ours, by a mark that has its oid and its name."""
    found = ddl.find(server, name)
    return found is not None and found.mark is not None and found.problem(server.facts.system) == ""


def test_whatever_we_rename_stays_ours(template: Template, project: Project) -> None:
    """From the build to the template, from the warm clone to the clone, aside and kept: the mark
    goes along each time."""
    server = template.server
    assert ours(server, template.name)
    before = template.database.oid
    again = Template.ensure(server, template.schema, rebuild=True)
    assert ours(server, again.name)
    assert again.database.oid != before
    with again.clone() as clone:
        for _ in range(4):
            clone.replace("a test", often=True)
            assert all(ours(server, name) for name in project.databases(server))
        clone.snapshot("label")
        clone.restore("label")
        kept = clone.keep("a test")
        assert ours(server, kept)
        assert ours(server, clone.name)
    prune(server, again.name, everything=True)
    assert project.databases(server) == [again.name]


@pytest.mark.parametrize("step", ["put aside", "kept"])
def test_what_was_renamed_by_us_and_left_is_dropped_by_the_next(
    step: str, template: Template, project: Project
) -> None:
    """Name and mark change in one transaction, so that no process can die between them."""
    server = template.server
    if step == "kept":
        clone = Clone.create(server, template.database, "r", "gw0")
        kept = keep(server, clone.name, clone.mark, "label")
        assert ours(server, kept)
    else:
        names = [
            clone_name(project.name, "r", "gw0"),
            spare_name(project.name),
            spare_name(project.name),
        ]
        for name in names[:2]:
            ddl.create(
                server, name, "template0", Mark.make("clone", project.name, server.facts.system)
            )
        assert ddl.swap(server, names[0], names[2], names[1])
        assert ours(server, names[0])
        assert ours(server, names[2])
        assert {names[0], names[2]} <= {d.name for d, _ in prune(server, template.name)}
        assert project.databases(server) == [template.name]
