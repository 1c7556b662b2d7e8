"""A template: built once, found again, rebuilt when an input changes, complete or absent."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import sql

from dbclone import runner
from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.databases.naming import FORMAT, NO_LIMIT, Mark
from dbclone.databases.prune import prune
from dbclone.errors import BuildFailed, NotOwned, TemplateError
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.template.template import Template

from ...conftest import Open, Project
from ...faults.stops import close

SCHEMA = "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 100);"


@pytest.fixture
def shop_project(project: Project) -> Project:
    return project.sql(SCHEMA)


def ensure(server: Server, rebuild: bool = False) -> Template:
    return Template.ensure(server, handles.load(server.settings)[0], rebuild=rebuild)


def ask(template: Template, query: str) -> list[tuple[object, ...]]:
    """Return the rows of a query in a fresh clone."""
    with template.clone() as clone, clone.connect() as connection:
        return connection.execute(query.encode()).fetchall()


def test_a_template_is_built_once_and_found_again_by_everybody(shop: Open) -> None:
    first = ensure(shop())
    again, another = ensure(first.server), ensure(shop())
    assert (first.built, again.built, another.built) == (True, False, False)
    assert first.database.oid == again.database.oid == another.database.oid
    assert ask(another, "SELECT count(*) FROM item") == [(100,)]


def test_every_changed_input_builds_anew_and_why_names_it(project: Project, shop: Open) -> None:
    assert ensure(shop()).why == ()
    (project.folder / "schema.sql").write_text(SCHEMA + "CREATE TABLE more ();")
    changed = ensure(shop())
    assert (changed.built, changed.why) == (True, ("file schema.sql changed",))
    project.write(seeds="def rows(url): pass\n")
    seeded = ensure(shop(seed="seeds:rows"))
    assert (seeded.built, seeded.why) == (True, ("file seeds.py is new", "seed seeds:rows is new"))
    latin = ensure(shop(encoding="SQL_ASCII", locale="C"))
    assert latin.built
    assert {"encoding was UTF8, is SQL_ASCII", "file seeds.py is gone"} < set(latin.why)
    assert ask(latin, "SELECT current_setting('server_encoding') = 'SQL_ASCII'") == [(True,)]


def test_another_role_has_a_template_of_its_own(shop: Open, role: Dsn) -> None:
    """B18, S15: the result depends on who builds: owners, default privileges."""
    first = ensure(shop())
    second = ensure(shop(url=role.url))
    assert second.built
    assert second.why == (f"role was postgres, is {role.get('user')}",)
    assert second.name != first.name


def test_a_rebuild_replaces_the_template_while_an_old_clone_lives_on(
    project: Project, shop: Open
) -> None:
    server = shop()
    before = ensure(server)
    with before.clone("old") as old:
        after = ensure(server, rebuild=True)
        assert after.built
        assert (after.name, after.database.oid == before.database.oid) == (before.name, False)
        with old.connect() as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (100,)
    assert ask(after, "SELECT count(*) FROM item") == [(100,)]
    assert project.databases(server) == [after.name]


@pytest.mark.parametrize("statement", ["SELECT 1/0", "BEGIN; CREATE TABLE t ()", "nonsense"])
def test_a_schema_that_fails_leaves_no_database(
    statement: str, project: Project, shop: Open
) -> None:
    server = shop()
    (project.folder / "schema.sql").write_text(f"{SCHEMA}\n{statement};")
    everything = server.fetch("SELECT datname FROM pg_database ORDER BY 1")
    with pytest.raises(BuildFailed, match=r"schema\.sql"):
        ensure(server)
    assert server.fetch("SELECT datname FROM pg_database ORDER BY 1") == everything


def test_a_template_admits_nobody_and_is_one_for_the_server_too(shop: Open) -> None:
    """A12: a superuser is refused as well, so no forgotten session can be in the way of a clone."""
    template = ensure(shop())
    assert template.server.facts.superuser
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(template.server.database(template.name).url)
    query = "SELECT datistemplate, datallowconn, datconnlimit FROM pg_database WHERE datname = %s"
    ((is_template, admits, limit),) = template.server.fetch(query, [template.name])
    assert (is_template, admits) == (True, False)
    assert limit >= NO_LIMIT
    mark = template.database.mark
    assert mark is not None
    assert (mark.name, mark.oid) == (template.name, template.database.oid)
    assert (mark.kind, mark.project, mark.system) == (
        "template",
        template.server.settings.project,
        template.server.facts.system,
    )


def test_a_polluted_template1_does_not_matter(server: Server, shop: Open) -> None:
    """A14."""
    with psycopg.connect(**server.database("template1").kwargs, autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute("CREATE TABLE pollution ()")
        try:
            template = ensure(shop())
        finally:
            connection.execute("DROP TABLE pollution")
    assert ask(template, "SELECT to_regclass('pollution')") == [(None,)]


def test_all_rows_of_a_clone_are_frozen_and_its_tables_analysed(shop: Open) -> None:
    """The VACUUM was part of the build: no test pays for it, or plans without statistics."""
    template = ensure(shop())
    assert ask(template, "SELECT reltuples::int FROM pg_class WHERE relname = 'item'") == [(100,)]
    assert ask(template, "SELECT count(*) FROM pg_stats WHERE tablename = 'item'") == [(1,)]
    assert ask(
        template,
        "SELECT relfrozenxid::text::int8 > xmin::text::int8 FROM pg_class WHERE relname = 'item'",
    ) == [(True,)]


def test_unlogged_tables_are_in_the_clone_with_their_rows(project: Project, shop: Open) -> None:
    (project.folder / "schema.sql").write_text(
        "CREATE UNLOGGED TABLE cache AS SELECT generate_series(1, 1000) AS id;"
    )
    template = ensure(shop())
    assert ask(template, "SELECT count(*) FROM cache") == [(1000,)]


LEAVES = """
import psycopg
left = []
def make(url):
    connection = psycopg.connect(url)
    connection.execute("CREATE TABLE item AS SELECT generate_series(1, 100) AS id")
    connection.commit()
    connection.execute("LOCK TABLE item")
    left.append(connection)
    for where in {others!r}:
        left.append(psycopg.connect(where.replace("DBNAME", connection.info.dbname)))
"""


def test_a_session_that_the_schema_forgot_is_ended_whatever_it_holds(
    project: Project, shop: Open
) -> None:
    """A10: it holds a lock that the VACUUM of the build needs, so it is ended before, not after."""
    project.configure(schema="leaves_lock:make", bind=None)
    project.write(leaves_lock=LEAVES.format(others=[]))
    template = ensure(shop())
    assert ask(template, "SELECT count(*) FROM item") == [(100,)]


def test_a_session_that_cannot_be_ended_is_named_and_nothing_is_published(
    project: Project, server: Server, shop: Open, role: Dsn
) -> None:
    """A10: a superuser is in the database that a plain role builds. The role's own forgotten
    session is ended all the same."""
    project.configure(schema="leaves_two:make", bind=None)
    project.write(leaves_two=LEAVES.format(others=[server.dsn.replace(dbname="DBNAME").url]))
    plain = shop(url=role.url)
    with pytest.raises(TemplateError, match="left sessions open") as caught:
        ensure(plain)
    import leaves_two  # type: ignore[import-not-found]

    own, superuser = leaves_two.left
    assert f"Server process {superuser.info.backend_pid} of postgres" in caught.value.detail
    assert f"{own.info.backend_pid}" not in caught.value.detail
    assert all("_b_" in name for name in project.databases(server))
    for connection in leaves_two.left:
        connection.close()


def test_a_template_dropped_between_ensure_and_clone_is_built_again_unseen(
    project: Project, shop: Open
) -> None:
    """A18: one rebuild, and no error."""
    template = ensure(shop())
    pruner = shop()
    drop(pruner, template.name)
    assert ask(template, "SELECT count(*) FROM item") == [(100,)]
    assert project.databases(pruner) == [template.name]


def test_a_worker_does_not_notice_that_its_template_was_dropped(
    project: Project, shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A18, where it happens: between a worker's look-up and its CREATE DATABASE."""
    other, real = shop(), Clone.create
    dropped: list[str] = []
    monkeypatch.setenv("DATABASE_URL", "")

    def create(server: Server, template: object, *arguments: object) -> Clone:
        if not dropped:
            dropped.extend(name for name in project.databases(other))
            drop(other, dropped[0])
        return real(server, template, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Clone, "create", create)
    with runner.worker(other.settings, "gw0", "r") as clone, clone.connect() as connection:
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (100,)
    assert len(dropped) == 1


def test_a_template_that_is_always_dropped_is_a_clear_error(
    project: Project, shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A18: one rebuild, not one after the other for ever."""
    template, other, real = ensure(shop()), shop(), Clone.create

    def create(server: Server, found: object, *arguments: object) -> Clone:
        drop(other, template.name)
        return real(server, found, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Clone, "create", create)
    with pytest.raises(TemplateError, match="dropped since it was found, twice"):
        template.clone()
    assert project.databases(other) == []


def drop(server: Server, name: str) -> None:
    """Drop a template as somebody would by hand."""
    for text in ("ALTER DATABASE {} IS_TEMPLATE false", "DROP DATABASE {}"):
        server.connection.execute(sql.SQL(text).format(sql.Identifier(name)))


def test_a_stranger_with_the_name_of_our_template_is_left_alone(
    project: Project, shop: Open
) -> None:
    """S1, S15."""
    server = shop()
    template = ensure(server)
    drop(server, template.name)
    server.connection.execute(
        sql.SQL("CREATE DATABASE {} IS_TEMPLATE true ALLOW_CONNECTIONS false").format(
            sql.Identifier(template.name)
        )
    )
    for rebuild in (False, True):
        with pytest.raises(NotOwned, match="has the name of our template"):
            ensure(server, rebuild)
    comment = Mark.make(
        "template", server.settings.project, "1", fingerprint="of another server"
    ).text()
    server.connection.execute(
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(
            sql.Identifier(template.name), sql.Literal(comment)
        )
    )
    with pytest.raises(NotOwned, match="has the name of our template") as caught:
        ensure(server)
    assert "of another server" in caught.value.detail
    assert project.databases(server) == [template.name]


@pytest.mark.parametrize("number", [1, FORMAT + 1, 99])
def test_the_template_of_another_version_of_dbclone_is_built_beside(
    number: int, project: Project, shop: Open
) -> None:
    """Neither may drop, rename or trust what the other has made; a clone comes from our own."""
    server = shop(retain_days="0", retain_templates="1")
    foreign = ensure(server)
    (comment,) = server.fetch(
        "SELECT shobj_description(%s, 'pg_database')", [foreign.database.oid]
    )[0]
    other = json.dumps({**json.loads(comment), "dbclone": number, "news": [1]})
    server.connection.execute(
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(
            sql.Identifier(foreign.name), sql.Literal(other)
        )
    )
    server.leases.release(foreign.name, shared=True)
    try:
        for rebuild in (False, True, False):
            ours = ensure(server, rebuild)
            assert ours.name != foreign.name
            with ours.clone() as clone:
                assert clone.template.oid == ours.database.oid
            prune(server, ours.name, everything=True)
            assert project.databases(server) == sorted([foreign.name, ours.name])
        assert not ensure(server).built, "it is found again"
        assert server.fetch(
            "SELECT oid::int8 FROM pg_database WHERE datname = %s", [foreign.name]
        ) == [(foreign.database.oid,)]
    finally:
        drop(server, foreign.name)


def test_the_whole_life_cycle_needs_no_more_than_createdb(
    project: Project, shop: Open, role: Dsn
) -> None:
    """Promise 13: build, reuse, clone, rebuild, replace, prune."""
    server = shop(url=role.url)
    assert not server.facts.superuser
    template = ensure(server)
    assert ask(template, "SELECT count(*) FROM item") == [(100,)]
    assert ensure(server, rebuild=True).built
    with template.clone() as clone:
        clone.replace("a test of it")
    (project.folder / "schema.sql").write_text("CREATE TABLE other ();")
    current = ensure(server)
    last = shop(url=role.url, retain_templates="1")
    close(server, last)
    prune(last, current.name)
    assert project.databases(last) == [current.name]
