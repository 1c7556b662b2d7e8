"""SQLAlchemy metadata as a schema: the same manifest in every process, another when anything
changes, and all of it built."""

from __future__ import annotations

import enum
import subprocess
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import (
    DDL,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ENUM, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, declarative_base, mapped_column, registry
from sqlalchemy.schema import CreateSchema
from sqlmodel import SQLModel

from dbclone.adapters import handles
from dbclone.errors import BuildFailed, SettingsError
from dbclone.schema.manifest import Manifest
from dbclone.schema.sources import Schema
from dbclone.server.server import Server
from dbclone.settings import Settings

from .programs import Base

ddl: Any = DDL  # which has no types


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


def everything(**changes: Any) -> MetaData:
    """Metadata with all that create_all makes; `changes` says what is different."""
    found = MetaData(schema=changes.get("schema", "Shop"))
    Table(
        "user",
        found,
        Column("id", Integer, Identity(start=changes.get("start", 7)), primary_key=True),
        Column(
            "name",
            String(changes.get("length", 20)),
            nullable=False,
            comment=changes.get("comment", "as it is shown"),
        ),
        Column("data", JSONB, server_default=text(changes.get("default", "'{}'::jsonb"))),
        Column("lower_name", String, Computed("lower(name)", persisted=True)),
        Column(
            "colour",
            Enum(Colour) if "enum" not in changes else Enum(*changes["enum"], name="colour"),
        ),
        CheckConstraint(changes.get("check", "name <> ''"), name="named"),
        comment="people",
    )
    # A cycle of foreign keys, which are created when both tables are there.
    Table(
        "a",
        found,
        Column("id", Integer, primary_key=True),
        Column("b_id", ForeignKey(f"{found.schema}.b.id")),
    )
    Table(
        "b",
        found,
        Column("id", Integer, primary_key=True),
        Column("a_id", ForeignKey(f"{found.schema}.a.id")),
    )
    for number in range(8):
        columns = found.tables[f"{found.schema}.user"].c
        Index(
            f"i{number}",
            func.lower(columns.name),
            columns.data,
            postgresql_where=columns.id > number + changes.get("where", 0),
        )
    Sequence("invoice", start=changes.get("sequence", 100), metadata=found)
    event.listen(
        found,
        "after_create",
        ddl(changes.get("event", 'CREATE VIEW "Shop".everybody AS SELECT name FROM "Shop"."user"')),
    )
    return found


def schema_of(settings: Settings, thing: Any) -> Schema:
    adapter = handles.adapter_of(thing)
    assert adapter is not None
    return adapter.schema(settings, "x", thing)


@pytest.fixture
def built(server: Server, settings: Settings) -> Iterator[Callable[[Any], psycopg.Connection[Any]]]:
    """A function that builds metadata in an empty database and returns a connection to it."""
    name = f"built_{uuid.uuid4().hex[:8]}"
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    opened: list[psycopg.Connection[Any]] = []

    def build(thing: Any) -> psycopg.Connection[Any]:
        steps: list[str] = []
        schema_of(settings, thing).build(server.database(name).url, steps.append)
        assert any(step.startswith("CREATE TABLE") for step in steps)
        opened.append(psycopg.connect(server.database(name).url, autocommit=True))
        return opened[-1]

    yield build
    for connection in opened:
        connection.close()
    server.connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_everything_is_built(built: Callable[[Any], psycopg.Connection[Any]]) -> None:
    connection = built(everything())
    connection.execute("""INSERT INTO "Shop"."user" (name, colour) VALUES ('Ann', 'RED')""")
    row = connection.execute(
        """SELECT u.*, nextval('"Shop".invoice') FROM "Shop"."user" u"""
    ).fetchone()
    assert row == (7, "Ann", {}, "ann", "RED", 100)
    assert connection.execute('SELECT name FROM "Shop".everybody').fetchall() == [("Ann",)]
    assert connection.execute(
        "SELECT count(*) FROM pg_indexes WHERE schemaname = 'Shop' AND indexname ~ '^i'"
    ).fetchone() == (8,)
    assert connection.execute(
        "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
    ).fetchone() == (2,)
    assert connection.execute(
        """SELECT obj_description('"Shop"."user"'::regclass)"""
    ).fetchone() == ("people",)


def test_the_manifest_is_the_same_in_every_process(settings: Settings) -> None:
    """Indexes and constraints are sets, whose order is another in each process."""
    code = (
        "from tests.integration.adapters.alchemy.test_schema import *; from dbclone.settings import load;"
        "print(sorted(schema_of(load(), everything()).manifest().items()))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for path in [":".join(sys.path)]
        for seed in ("1", "2", "3")
    }
    assert printed == {f"{sorted(schema_of(settings, everything()).manifest().items())}\n"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"length": 21}, "table Shop.user"),
        ({"start": 8}, "table Shop.user"),
        ({"comment": "other"}, "table Shop.user"),
        ({"default": "'[]'::jsonb"}, "table Shop.user"),
        ({"check": "name <> 'x'"}, "table Shop.user"),
        ({"where": 1}, "table Shop.user"),
        ({"enum": ("RED", "BLUE")}, "enum "),
        ({"sequence": 101}, "sequence Shop.invoice"),
        ({"event": "SELECT 2"}, "SQL of the metadata's events"),
        ({"schema": "other"}, "schema other"),
    ],
    ids=str,
)
def test_a_change_makes_another_manifest_and_is_named(
    settings: Settings, change: dict[str, Any], named: str
) -> None:
    before = Manifest(schema_of(settings, everything()).manifest())
    after = Manifest(schema_of(settings, everything(**change)).manifest())
    assert before.fingerprint != after.fingerprint
    assert any(line.startswith(named) for line in after.explain(before)), after.explain(before)


def test_python_side_defaults_are_no_part_of_it(settings: Settings) -> None:
    def manifest(**options: Any) -> Mapping[str, str]:
        found = MetaData()
        Table("t", found, Column("a", Integer, primary_key=True), Column("b", Integer, **options))
        return schema_of(settings, found).manifest()

    assert manifest() == manifest(default=lambda: 1, onupdate=2)


def test_what_events_do_in_python_is_built_and_digested(
    settings: Settings, built: Callable[[Any], psycopg.Connection[Any]]
) -> None:
    """One only executes, which can be recorded; the other needs an answer, so its source is what
    counts."""

    def metadata(listener: Any) -> MetaData:
        found = MetaData()
        Table(
            "t",
            found,
            Column("a", Integer, primary_key=True),
            Column("kind", ENUM("x", "y", name="kind")),
        )
        event.listen(found, "after_create", listener)
        return found

    def executes(target: Any, connection: Any, **_: Any) -> None:
        connection.execute(text("INSERT INTO t VALUES (1)"))

    def answers(target: Any, connection: Any, **_: Any) -> None:
        number = connection.execute(text("SELECT 2")).scalar_one()
        connection.execute(target.tables["t"].insert().values(a=number))

    def other(target: Any, connection: Any, **_: Any) -> None:
        number = connection.execute(text("SELECT 3")).scalar_one()
        connection.execute(target.tables["t"].insert().values(a=number))

    found = [
        Manifest(schema_of(settings, metadata(one)).manifest())
        for one in (executes, answers, other, answers)
    ]
    assert len({manifest.fingerprint for manifest in found}) == 3
    assert found[1] == found[3]
    assert all("table t" in manifest for manifest in found)
    assert built(metadata(answers)).execute("SELECT a FROM t").fetchall() == [(2,)]


@pytest.mark.parametrize(
    "create",
    [
        CreateSchema("audit"),
        ddl("CREATE SCHEMA IF NOT EXISTS audit"),
        ddl('create schema "audit"'),
        None,
    ],
    ids=str,
)
def test_a_schema_is_created_once_whoever_does(
    built: Callable[[Any], psycopg.Connection[Any]], create: Any
) -> None:
    found = MetaData()
    Table("t", found, Column("a", Integer, primary_key=True), schema="audit")
    if create is not None:
        event.listen(found, "before_create", create)
    assert built(found).execute("SELECT count(*) FROM audit.t").fetchone() == (0,)


def test_what_means_metadata(
    settings: Settings, built: Callable[[Any], psycopg.Connection[Any]]
) -> None:
    legacy = declarative_base(metadata=Base.metadata)
    module = types.ModuleType("models")
    vars(module).update(Base=Base, MetaData=MetaData, empty=MetaData(), Integer=Integer)
    bare = types.ModuleType("bare")
    vars(bare).update(metadata=Base.metadata)
    things = [
        Base,
        Base.metadata,
        legacy,
        registry(metadata=Base.metadata),
        Base.metadata.tables["pet"],
        [Base.metadata, Base],
        module,
        bare,
    ]
    manifests = [dict(schema_of(settings, thing).manifest()) for thing in things]
    assert all(manifest == manifests[0] for manifest in manifests)
    assert {"table person", "table pet"} <= set(manifests[0])
    other = MetaData()
    Table("third", other, Column("a", Integer, primary_key=True))
    both = [Base.metadata, other]
    assert set(schema_of(settings, both).manifest()) == {*manifests[0], "table third"}
    rows = built(both).execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace ="
        " 'public'::regnamespace ORDER BY 1"
    )
    assert rows.fetchall() == [("person",), ("pet",), ("third",)]


def test_metadata_without_tables_is_refused(settings: Settings) -> None:
    class Empty(DeclarativeBase):
        pass

    for thing in (Empty, MetaData(), [MetaData()]):
        with pytest.raises(SettingsError, match="Import the modules that define the models"):
            schema_of(settings, thing)
    assert handles.adapter_of(SQLModel) is handles.adapter_of(Empty)


def test_what_the_server_refuses_is_said_with_its_statement(
    built: Callable[[Any], psycopg.Connection[Any]],
) -> None:
    class Own(DeclarativeBase):
        pass

    class Wrong(Own):
        __tablename__ = "wrong"

        id: Mapped[int] = mapped_column(primary_key=True, server_default=text("no_such_function()"))

    with pytest.raises(BuildFailed, match=r"(?s)no_such_function.*CREATE TABLE wrong") as caught:
        built(Own)
    assert "sqlalche.me" not in str(caught.value)


def test_a_spec_of_the_setting(settings: Settings) -> None:
    own = replace(settings, schema=("tests.integration.adapters.alchemy.programs:Base.metadata",))
    schema, handle = handles.load(own)
    assert "table person" in schema.manifest()
    assert handle is None
