"""Names that mean harm, of projects, workers, tests, and of all that is in a schema: used as names
or refused, never as SQL."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql

from dbclone.databases import ddl
from dbclone.databases.naming import limit_for
from dbclone.errors import SettingsError
from dbclone.runner import worker
from dbclone.server.connection import connect
from dbclone.server.dsn import Dsn, parse
from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from ..hostile import ANYTHING, NAMES, examples


def every_database(server: Server) -> set[str]:
    return {name for (name,) in server.fetch("SELECT datname::text FROM pg_database")}


@pytest.fixture(scope="module")
def victim(server: Server) -> Iterator[None]:
    """A database that the names want to drop, and that is there at the end."""
    server.connection.execute("CREATE DATABASE victim")
    yield
    assert "victim" in every_database(server)
    server.connection.execute("DROP DATABASE victim")


@contextlib.contextmanager
def nothing_left(server: Server) -> Iterator[None]:
    """Drop what the block made, and look for anything else that it did to the databases of the
    server."""
    before = every_database(server)
    try:
        yield
    finally:
        for database in ddl.list_databases(server):
            if database.name not in before:
                ddl.drop(server, database, force=True)
        assert every_database(server) == before


@examples(5)
@given(project=ANYTHING, owner=ANYTHING, test=ANYTHING)
@example(project="x", owner="a\0b", test="a\0b")
@example(project="\udcff" * 70, owner="\udcff" * 70, test="\udcff" * 70)
@example(project="Ü" * 80, owner="Ü" * 80, test="\x1b[2J" * 80)
def test_any_name_of_a_project_a_worker_and_a_test_works_or_is_refused(
    project: str,
    owner: str,
    test: str,
    server: Server,
    victim: None,
    options: dict[str, str],
    tmp_path: Path,
) -> None:
    """B6, S5, S6, S25: from the setting to the list of sessions."""
    (tmp_path / "s.sql").write_text("CREATE TABLE t (a int)")
    given_options = {**options, "name": project, "schema": ["s.sql"]}
    if "\0" in project:
        with pytest.raises(SettingsError, match="is not text without NUL characters"):
            load(tmp_path, given_options, {})
        return
    settings = load(tmp_path, given_options, {})
    with nothing_left(server), worker(settings, owner, "run") as clone:
        for reset in ("rollback", "truncate"):
            with clone.isolated(reset, test=test) as isolation:
                isolation.execute("INSERT INTO t VALUES (1)")
                (name,) = isolation.execute("SHOW application_name").fetchone() or ("",)
                assert name.isprintable()
                assert len(name) <= 63
        with connect(clone.dsn) as connection:
            assert connection.execute(
                "SELECT count(*), current_database()::text FROM t"
            ).fetchone() == (0, clone.name)
        (found,) = [d for d in ddl.list_databases(server) if d.name == clone.name]
        assert found.mark is not None
        assert found.problem(server.facts.system) == ""


@dataclass(frozen=True)
class Named:
    """A schema whose tables, columns and all else have names that mean harm."""

    names: tuple[str, ...]

    def manifest(self) -> Mapping[str, str]:
        return {f"names {name}": name for name in self.names}

    def identifiers(self) -> list[sql.Identifier]:
        return [sql.Identifier(name) for name in self.names]

    def build(self, url: str, progress: Callable[[str], None]) -> None:
        schema, parent, child, column, view = self.identifiers()
        with connect(parse(url), autocommit=True) as connection:
            for text in BUILT:
                connection.execute(
                    sql.SQL(text).format(s=schema, p=parent, c=child, k=column, v=view)
                )


BUILT = """
CREATE SCHEMA {s}
CREATE TABLE {s}.{p} ({k} serial PRIMARY KEY)
CREATE TABLE {s}.{c} ({k} bigint GENERATED ALWAYS AS IDENTITY, parent int CONSTRAINT {v} REFERENCES {s}.{p} ON UPDATE CASCADE)
CREATE TYPE {s}.{k} AS ENUM ('a')
CREATE MATERIALIZED VIEW {s}.{v} AS SELECT count(*) AS {p} FROM {s}.{p}
CREATE FUNCTION {s}.{k}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'
CREATE TRIGGER {v} BEFORE INSERT ON {s}.{p} FOR EACH ROW EXECUTE FUNCTION {s}.{k}()
INSERT INTO {s}.{p} DEFAULT VALUES
""".strip().splitlines()


def distinct(names: list[str]) -> bool:
    """Whether the server keeps them apart: it cuts them at 63 bytes, and gives types and tables one
    space."""
    return len({name.encode()[:62] for name in names}) == len(names) and not any(
        name.startswith("pg_") for name in names
    )


@examples(2)
@given(names=st.lists(NAMES, min_size=5, max_size=5).filter(distinct))
@example(names=['a"; DROP DATABASE victim; --', "table", "SELECT", "%s", "{}"])
@example(names=["ü" * 40, "😀" * 20, "x" * 70, "%(name)s", "a.b"])
def test_every_reset_puts_a_schema_right_whatever_its_names_are(
    names: list[str], server: Server, victim: None, options: dict[str, str], tmp_path: Path
) -> None:
    """S5: a reset reads names from the catalogue, where anybody may have put them."""
    schema = Named(tuple(names))
    s, p, c, k, v = schema.identifiers()
    settings = load(tmp_path, {**options, "name": "named"}, {})

    def state(dsn: Dsn) -> list[tuple[object, ...]]:
        with connect(dsn) as connection:
            parents = connection.execute(
                sql.SQL("SELECT array_agg({}), max({}) FROM {}.{}").format(k, k, s, p)
            ).fetchall()
            children = connection.execute(
                sql.SQL("SELECT count(*), 0 FROM {}.{}").format(s, c)
            ).fetchall()
            view = connection.execute(sql.SQL("SELECT {}, 0 FROM {}.{}").format(p, s, v)).fetchall()
            return [*parents, *children, *view]

    with nothing_left(server), Server.open(settings) as opened:
        template = Template.ensure(opened, schema)
        with template.clone(owner="gw0") as clone:
            before = state(clone.dsn)
            for reset in ("rollback", "truncate", "drop", "truncate", "clone", "none"):
                with clone.isolated(reset) as isolation:
                    assert state(clone.dsn) == before, f"before {reset}"
                    for _ in range(3):
                        isolation.execute(sql.SQL("INSERT INTO {}.{} DEFAULT VALUES").format(s, p))
                    isolation.execute(
                        sql.SQL("INSERT INTO {}.{} (parent) SELECT {} FROM {}.{}").format(
                            s, c, k, s, p
                        )
                    )
                    isolation.execute(sql.SQL("UPDATE {}.{} SET {} = {} + 100").format(s, p, k, k))
                    isolation.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}.{}").format(s, v))
            assert not [note for note in clone.report.notes if "Error" in note], clone.report.notes


@examples(4)
@given(name=NAMES.filter(lambda name: len(name.encode()) < 60))
def test_settings_and_grants_for_roles_of_any_name_are_copied(
    name: str, server: Server, victim: None
) -> None:
    """S5: what CREATE DATABASE does not copy is copied by statements of ours, with the names in it."""
    role = sql.Identifier(f"{uuid.uuid4().hex[:3]}{name}")
    execute = server.connection.execute
    execute(sql.SQL("CREATE ROLE {}").format(role))
    pair = [f"dbclone_pair_{uuid.uuid4().hex[:8]}" for _ in range(2)]
    try:
        for database in pair:
            execute(
                sql.SQL("CREATE DATABASE {} CONNECTION LIMIT {}").format(
                    sql.Identifier(database), limit_for(database, server.facts.system)
                )
            )
        first = sql.Identifier(pair[0])
        execute(sql.SQL("GRANT TEMPORARY ON DATABASE {} TO {}").format(first, role))
        execute(
            sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path = {}, public").format(
                role, first, sql.Identifier(name)
            )
        )
        execute(
            sql.SQL("ALTER ROLE {} IN DATABASE {} SET application_name = {}").format(
                role, first, name
            )
        )
        ddl.carry_over(server, *pair)
        query = """SELECT d.datacl::text, array(SELECT s.setconfig::text FROM pg_db_role_setting s WHERE s.setdatabase = d.oid)
                   FROM pg_database d WHERE datname = ANY(%s)"""
        old, new = server.fetch(query, [pair])
        assert old == new
    finally:
        for database in pair:
            execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(database)))
        execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.mark.parametrize("setting", ["encoding", "locale"])
@pytest.mark.parametrize(
    "value", ["nonsense", "x'; DROP DATABASE victim; --", "%s{}", "\udc80", "😀" * 100, " "]
)
def test_an_encoding_or_locale_that_there_is_not_is_refused_by_name(
    setting: str, value: str, server: Server, victim: None, options: dict[str, str], tmp_path: Path
) -> None:
    """S5."""
    (tmp_path / "s.sql").write_text("CREATE TABLE t (a int)")
    settings = load(tmp_path, {**options, "name": "odd", "schema": ["s.sql"], setting: value}, {})
    with (
        nothing_left(server),
        pytest.raises(
            SettingsError, match="the server cannot create a database like that"
        ) as caught,
    ):
        with worker(settings, "gw0", "run"):
            pass
    assert caught.value.message.startswith(f"{setting} = ")


PATTERNS = NAMES | st.sampled_from(
    [
        "**x/*.sql",
        "x" * 300,
        "~nobody-of-that-name/x.sql",
        "[.sql",
        "/**y.sql",
        "\udcff.sql",
        "m:",
        ":f",
    ]
)


@examples(60)
@given(
    key=st.sampled_from(["schema", "seed", "bind", "inputs", "keep", "env", "binaries"]),
    value=ANYTHING | PATTERNS,
)
def test_any_value_of_a_setting_is_understood_or_refused_as_a_setting(
    key: str, value: str, tmp_path: Path
) -> None:
    from dbclone.adapters import handles

    (tmp_path / "s.sql").touch()
    given_options = {"schema": ["true s.sql"] if key == "inputs" else ["s.sql"], key: value}
    before = set(sys.path)
    with contextlib.suppress(SettingsError):
        handles.load(load(tmp_path, given_options, {}))[0].manifest()
    sys.path[:] = [path for path in sys.path if path in before]
    assert [path.name for path in tmp_path.iterdir()] == ["s.sql"]


@pytest.mark.parametrize(
    "name",
    [
        "sp ace",
        "qu'o\"te",
        "$(touch x); {} %s",
        "ünï😀",
        b"b\xffd",
        "x" * 200,
        "-d",
        "new\nline",
        "a,b",
        "\x1b[2J",
    ],
    ids=ascii,
)
def test_a_project_in_any_folder_has_its_tests_run(
    name: str | bytes, server: Server, options: dict[str, str], tmp_path: Path
) -> None:
    """B6, F1: without a name of its own, the project is called as its folder; a file of its schema
    is called like that too."""
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    (folder / f"{os.fsdecode(name)[:100]}.sql").write_text("CREATE TABLE t (a int)")
    settings = load(folder, {**options, "schema": ["*.sql"]}, {})
    with (
        nothing_left(server),
        worker(settings, "gw0", "run") as clone,
        clone.isolated("truncate") as isolation,
    ):
        isolation.execute("INSERT INTO t VALUES (1)")
        assert isolation.name.isascii()
        (template,) = [
            d.mark
            for d in ddl.list_databases(server)
            if d.published and d.mark and d.mark.project == settings.project
        ]
        assert any(name.startswith("file ") and name.endswith(".sql") for name in template.manifest)


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a'b",
        'a"b',
        "a=b",
        "postgresql://x",
        "dbname=postgres",
        "é😀",
        "%41",
        "a/b?c#d&e",
        "A",
        "{}",
        " ",
    ],
)
def test_a_database_of_any_name_is_reached_by_its_url_and_by_nothing_else_in_it(
    name: str, server: Server
) -> None:
    """S6: a name that looks like a connection string is a name."""
    identifier = sql.Identifier(name)
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    try:
        dsn = server.database(name)
        for found in (dsn, parse(dsn.url)):
            with connect(found) as connection:
                assert connection.execute("SELECT current_database()::text").fetchone() == (name,)
        with psycopg.connect(dsn.url) as connection:
            assert connection.info.dbname == name
    finally:
        server.connection.execute(sql.SQL("DROP DATABASE {}").format(identifier))
