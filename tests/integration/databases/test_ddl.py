"""The statements that create, close, rename and drop databases, and what they refuse."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.databases import ddl
from dbclone.databases.naming import Database, Mark, build_name, limit_for, template_name
from dbclone.errors import NotOwned, TemplateError
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ...conftest import Project


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """A name of our shape that no database has; what has it at the end is dropped."""
    made = build_name("databases")
    yield made
    identifier = sql.Identifier(made)
    with_limit = server.fetch("SELECT datconnlimit FROM pg_database WHERE datname = %s", [made])
    if with_limit:
        if with_limit[0][0] != -2:
            server.connection.execute(
                sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(identifier)
            )
        server.connection.execute(sql.SQL("DROP DATABASE {}").format(identifier))


def mark(server: Server, kind: str = "clone") -> Mark:
    return Mark.make(kind, "databases", server.facts.system)


def plain(server: Server, name: str, comment: str = "", options: str = "") -> None:
    """Create a database as anybody would."""
    server.connection.execute(
        sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(options))
    )
    if comment:
        server.connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(name), sql.Literal(comment)
            )
        )


def found(server: Server, name: str) -> Database:
    database = ddl.find(server, name)
    assert database is not None
    return database


def test_what_is_created_is_marked_and_can_be_dropped(server: Server, name: str) -> None:
    ddl.create(server, name, "template0", mark(server))
    made = found(server, name)
    limit = limit_for(name, server.facts.system)
    assert (made.own, made.sealed, made.limit, made.problem(server.facts.system)) == (
        True,
        False,
        limit,
        "",
    )
    assert made.mark is not None
    assert (made.mark.kind, made.mark.name, made.mark.oid) == ("clone", name, made.oid)
    ddl.drop(server, made)
    assert ddl.find(server, name) is None
    ddl.drop(server, made)  # gone already is no error


@pytest.mark.parametrize(
    ("comment", "reason"),
    [
        ("", "no mark"),
        ("the accounting database", "its comment is not"),
        ('{"dbclone": 2}', "its comment is not"),
        (
            '{"dbclone": 1, "kind": "clone", "project": "databases", "system": "SYSTEM"}',
            "of another version",
        ),
        (
            '{"dbclone": 3, "kind": "clone", "project": "databases", "system": "SYSTEM"}',
            "of another version",
        ),
        (
            '{"dbclone": 2, "kind": "clone", "project": "databases", "system": "42"}',
            "of another server",
        ),
        (
            '{"dbclone": 2, "kind": "clone", "project": "databases", "system": "SYSTEM"}',
            "of another database",
        ),
        (
            '{"dbclone": 2, "kind": "clone", "project": "databases", "system": "SYSTEM",'
            ' "and": "more"}',
            "its comment is not",
        ),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_database_with_our_kind_of_name_and_no_mark_of_ours_is_never_dropped(
    comment: str, reason: str, force: bool, server: Server, name: str
) -> None:
    """E13, promise 1."""
    plain(server, name, comment.replace("SYSTEM", server.facts.system))
    with pytest.raises(NotOwned, match=reason):
        ddl.drop(server, found(server, name), force)
    assert ddl.find(server, name) is not None


def test_our_mark_on_a_database_of_another_role_is_no_licence(
    server: Server, role: Dsn, name: str
) -> None:
    """Only an owner can write a comment, so a mark proves something only together with the owner."""
    plain(server, name, "", f"OWNER {role.get('user')}")
    ddl.comment(server, name, mark(server).bound(name, found(server, name).oid))
    with pytest.raises(NotOwned, match="belongs to another role"):
        ddl.drop(server, found(server, name))
    assert ddl.find(server, name) is not None


@pytest.mark.parametrize(
    "name_",
    [
        "postgres",
        "template1",
        "Dbclone_x_t_1",
        "dbclone_x_t_1\n",
        "dbclone_é",
        "dbclone_" + "x" * 56,
    ],
)
def test_a_name_that_we_do_not_give_is_refused_before_anything_is_sent(
    name_: str, server: Server
) -> None:
    """B5, B6: also 64 bytes of it, which the server would cut, and a line feed at its end."""
    before = server.fetch("SELECT oid, datname FROM pg_database ORDER BY 1")
    for attempt in (
        lambda: ddl.create(server, name_, "template0", mark(server)),
        lambda: ddl.rename(server, "postgres", name_),
    ):
        with pytest.raises(TemplateError, match="not a name that dbclone gives"):
            attempt()
    disguised = Database(
        1,
        name_,
        True,
        False,
        limit_for(name_, server.facts.system),
        0,
        0,
        mark(server),
        mark(server).text(),
    )
    assert disguised.problem(server.facts.system) == "its name is not one that dbclone gives"
    assert server.fetch("SELECT oid, datname FROM pg_database ORDER BY 1") == before


def test_a_database_is_looked_up_again_before_it_is_dropped(server: Server, name: str) -> None:
    """Between list and drop somebody dropped it and made another of the same name: that one stays."""
    ddl.create(server, name, "template0", mark(server))
    seen = found(server, name)
    ddl.drop(server, seen)
    ddl.create(server, name, "template0", mark(server))
    ddl.drop(server, seen)
    ddl.drop(server, found(server, name))
    assert ddl.find(server, name) is None


def test_an_interrupted_drop_is_finished_without_losing_our_connection(
    server: Server, name: str
) -> None:
    """B13: ALTER on such a database is FATAL; only DROP works, with force or without."""
    for force in (False, True):
        ddl.create(server, name, "template0", mark(server))
        server.fetch(
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s RETURNING 1", [name]
        )
        ddl.drop(server, found(server, name), force)
        assert ddl.find(server, name) is None


def test_the_rename_to_a_taken_name_says_so_and_changes_nothing(server: Server, name: str) -> None:
    other = build_name("databases")
    for each in (name, other):
        ddl.create(server, each, "template0", mark(server))
    before = found(server, name)
    assert not ddl.rename(server, other, name)
    assert found(server, name) == before
    ddl.drop(server, found(server, other))


def test_swap_is_seen_by_nobody_half_done_and_needs_the_old_one(server: Server, name: str) -> None:
    new, aside = build_name("databases"), build_name("databases")
    ddl.create(server, new, "template0", mark(server))
    assert not ddl.swap(server, name, aside, new)
    assert found(server, new)
    ddl.create(server, name, "template0", mark(server))
    old = found(server, name)
    assert ddl.swap(server, name, aside, new)
    assert found(server, aside).oid == old.oid
    ddl.drop(server, found(server, aside))


def test_sessions_are_ended_and_kept_out_except_our_own(server: Server, name: str) -> None:
    ddl.create(server, name, "template0", mark(server))
    url = server.database(name).url
    with psycopg.connect(url) as forgotten, psycopg.connect(url, autocommit=True) as own:
        assert ddl.close_to_others(server, name, own.info.backend_pid) == []
        with pytest.raises(psycopg.OperationalError):
            forgotten.execute("SELECT 1")
        own.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
            psycopg.connect(url)


def test_sizes_are_zero_where_we_may_not_look(server: Server, role: Dsn, name: str) -> None:
    """One database that denies CONNECT to a plain role must not break the list of all others."""
    ddl.create(server, name, "template0", mark(server))
    assert found(server, name).bytes == 0
    assert next(iter(ddl.list_databases(server, name, sizes=True))).bytes > 1_000_000
    server.connection.execute(
        sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name))
    )
    with Server.open(replace(server.settings, url=role.url)) as other:
        assert next(iter(ddl.list_databases(other, name, sizes=True))).bytes == 0


SETTINGS = """
CREATE SCHEMA "odd, schema";
CREATE TEXT SEARCH CONFIGURATION own (COPY = simple);
CREATE ROLE {role};
DO $$
DECLARE db text := current_database();
BEGIN
  EXECUTE format('ALTER DATABASE %I SET search_path = "odd, schema", public, "$user"', db);
  EXECUTE format('ALTER DATABASE %I SET "my.setting" = %L', db, 'it''s "quoted", 100 %');
  EXECUTE format('ALTER DATABASE %I SET default_text_search_config = ''public.own''', db);
  EXECUTE format('ALTER DATABASE %I SET statement_timeout = ''90s''', db);
  EXECUTE format('ALTER DATABASE %I SET role = {role}', db);
  EXECUTE format('ALTER ROLE {role} IN DATABASE %I SET work_mem = ''7MB''', db);
  EXECUTE format('ALTER ROLE {role} IN DATABASE %I SET search_path = ''''', db);
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', db);
  EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM CURRENT_USER', db);
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO {role} WITH GRANT OPTION', db);
  EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 77', db);
END $$;
"""
CARRIED = """
SELECT d.datconnlimit, (SELECT array_agg(acl::text ORDER BY acl::text) FROM unnest(d.datacl) acl),
       (SELECT array_agg((r.rolname, s.setconfig)::text ORDER BY r.rolname) FROM pg_db_role_setting s
        LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE s.setdatabase = d.oid)
FROM pg_database d WHERE d.datname = %s
"""


def test_settings_grants_and_connection_limit_are_those_of_the_template(
    server: Server, project: Project, options: dict[str, str]
) -> None:
    """B15, promise 14: lists, quotes, settings that name what is only in that database."""
    role = f"carried_{uuid.uuid4().hex[:8]}"
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(SETTINGS.format(role=role))
    with Server.open(load(project.folder, options, {})) as shop:
        template = Template.ensure(shop, handles.load(shop.settings)[0])
        with template.clone() as clone:
            (expected,) = shop.fetch(CARRIED, [template.name])
            assert shop.fetch(CARRIED, [clone.name]) == [expected]
            assert expected[0] == 77
            assert len(expected[1]) == len(expected[2]) == 2
            with clone.connect() as connection:
                assert connection.execute("SHOW search_path").fetchone() == (
                    '"odd, schema", public, "$user"',
                )
        ddl.drop(shop, replace(template.database))
    server.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_a_template_s_own_mark_is_published_only_under_its_own_name(server: Server) -> None:
    """Pure: what was sealed and not renamed, or has stepped aside, is no template that anybody may
    count on."""
    sealed = mark(server, "template")
    there = Database(1, template_name("databases", ""), True, True, -1, 0, 0, sealed, sealed.text())
    assert there.published
    assert not replace(there, name=build_name("databases")).published
    assert not replace(there, mark=mark(server, "clone")).published
