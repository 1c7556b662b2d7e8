"""`python -m dbclone verify`: a template that is not what the schema builds today is found out, and
nothing is touched for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dbclone.server.dsn import Dsn
from dbclone.server.server import Server

from ...conftest import Project

MIGRATE = """
import os, psycopg

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE customer (id serial PRIMARY KEY, tenant text, secret text DEFAULT 'x')")
    connection.execute("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    connection.execute("INSERT INTO customer (tenant) SELECT 'a' FROM generate_series(1, 3)")
    for statement in filter(None, os.environ.get("EXTRA", "").split(";")):
        connection.execute(statement)
"""


# What a variable could decide: statements, and how the difference is named.
EXTRAS = {
    "INSERT INTO customer (id) VALUES (9)": ("rows of", "public.customer"),
    "SELECT setval('customer_id_seq', 3, false)": (
        "position of sequence",
        "public.customer_id_seq",
    ),
    "SELECT lo_from_bytea(4711, 'x')": ("rows of", "large objects"),
    "CREATE INDEX tenants ON customer (tenant)": ("index", "public.tenants"),
    "ALTER TABLE customer ADD CHECK (id > 0)": (
        "constraint",
        "customer_id_check of public.customer",
    ),
    "GRANT SELECT ON customer TO PUBLIC": ("relation", "public.customer"),
    "CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 2'": (
        "function",
        "public.one()",
    ),
    "ALTER SEQUENCE customer_id_seq CYCLE": ("sequence", "public.customer_id_seq"),
    "CREATE TYPE mood AS ENUM ('ok')": ("type", "public.mood"),
    "COMMENT ON TABLE customer IS 'c'": ("comment", "table public.customer"),
    "CREATE POLICY p ON customer USING (true)": ("policy", "p on public.customer"),
    "CREATE PUBLICATION p FOR TABLE customer": ("publication", "p"),
    "CREATE STATISTICS st ON id, tenant FROM customer": ("statistics", "public.st"),
}


@pytest.fixture
def migrated(project: Project) -> Project:
    """A project whose migration also runs what the variable EXTRA says, which no fingerprint sees;
    its template is built."""
    project.configure(schema="python migrate.py", inputs=["migrate.py"], bind=None)
    project.write(migrate=MIGRATE)
    assert project.run("dbclone", "prepare").returncode == 0
    return project


def verified(project: Project, *words: str, **environ: str) -> tuple[int, dict[str, Any]]:
    """Run verify; return its exit status and its facts."""
    done = project.run("dbclone", "verify", "--json", *words, timeout=120, **environ)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_template_that_is_what_the_schema_builds_is_said_to_be_equal(
    migrated: Project, server: Server
) -> None:
    before = migrated.databases(server)
    status, facts = verified(migrated)
    assert (status, facts["equal"], facts["differences"], facts["built"]) == (0, True, [], False)
    assert facts["objects"] > 8
    assert facts["rows"] == 3
    assert migrated.databases(server) == before
    assert "equal to what the schema builds now" in migrated.run("dbclone", "verify").stdout


def test_a_migration_that_reads_a_variable_is_found_out_and_the_template_stays_as_it_was(
    migrated: Project, server: Server
) -> None:
    """A19: no input changed, so the fingerprint is the same, and yet another schema is built."""
    (template,) = migrated.databases(server)
    status, facts = verified(migrated, EXTRA="ALTER TABLE customer ALTER tenant TYPE varchar(20)")
    assert (status, facts["equal"]) == (1, False)
    assert [
        (d["kind"], d["name"], d["part"], d["template"], d["rebuilt"]) for d in facts["differences"]
    ] == [("column", "public.customer.tenant", "type", "text", "character varying(20)")]
    assert migrated.databases(server) == [template]
    assert verified(migrated)[0] == 0, "the template was changed"
    shown = migrated.run("dbclone", "verify", EXTRA="DROP FUNCTION one()")
    assert shown.returncode == 1
    assert "function public.one(): there in the template, missing when rebuilt" in shown.stdout
    assert "prepare --rebuild" in shown.stdout


def test_every_kind_of_difference_is_named(migrated: Project) -> None:
    """A19: all at once, because each build takes a while; none hides another."""
    status, facts = verified(migrated, EXTRA=";".join(EXTRAS))
    assert status == 1
    found = {(d["kind"], d["name"]) for d in facts["differences"]}
    assert set(EXTRAS.values()) <= found
    assert not any(d["unsteady"] for d in facts["differences"])


def test_what_differs_with_every_build_is_told_from_what_an_input_decides(
    migrated: Project,
) -> None:
    clock = "ALTER TABLE customer ADD made timestamptz DEFAULT clock_timestamp()"
    migrated.run("dbclone", "prepare", "--rebuild", EXTRA=clock)
    status, facts = verified(migrated, EXTRA=clock)
    assert (status, [(d["part"], d["unsteady"]) for d in facts["differences"]]) == (
        1,
        [("made", True)],
    )
    assert verified(migrated, "--allow-unsteady", EXTRA=clock)[0] == 0
    status, facts = verified(
        migrated,
        "--allow-unsteady",
        EXTRA=";".join([clock, "UPDATE customer SET tenant = 'b' WHERE id = 2"]),
    )
    assert (status, {d["part"]: d["unsteady"] for d in facts["differences"]}) == (
        1,
        {"made": True, "tenant": False},
    )


def test_what_cannot_be_compared_is_said_and_no_password_is_shown(
    migrated: Project, server: Server
) -> None:
    extra = (
        "CREATE EXTENSION IF NOT EXISTS file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER"
        " file_fdw;"
        "CREATE FOREIGN TABLE far (x text) SERVER files OPTIONS (filename '/dev/null');"
        "ALTER TABLE customer ALTER secret SET DEFAULT 'postgresql://u:s3cr3t@h/d'"
    )
    if not server.fetch("SELECT FROM pg_available_extensions WHERE name = 'file_fdw'"):
        pytest.skip("this build has no foreign data wrapper")
    done = migrated.run("dbclone", "verify", EXTRA=extra)
    assert done.returncode == 1
    assert "not compared: public.far: its rows are elsewhere" in done.stdout
    assert "column public.customer.secret, default" in done.stdout
    assert "s3cr3t" not in done.stdout + done.stderr


def test_a_build_that_fails_beside_the_template_leaves_nothing(
    migrated: Project, server: Server
) -> None:
    before = migrated.databases(server)
    done = migrated.run("dbclone", "verify", EXTRA="SELECT 1/0")
    assert done.returncode == 1
    assert "division by zero" in done.stderr
    assert migrated.databases(server) == before


def test_rows_that_a_policy_hides_from_the_role_are_not_taken_for_equal(
    project: Project, role: Dsn
) -> None:
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(
        "CREATE TABLE hidden (id int); INSERT INTO hidden VALUES (1); ALTER TABLE hidden"
        " ENABLE ROW LEVEL SECURITY,"
        " FORCE ROW LEVEL SECURITY; CREATE TABLE seen (id int); INSERT INTO seen VALUES (1)"
    )
    status, facts = verified(project, "--url", role.replace(dbname="postgres").url)
    assert (status, facts["equal"], facts["rows"], list(facts["not_compared"])) == (
        0,
        True,
        1,
        ["public.hidden"],
    )
    shown = project.run("dbclone", "verify", "--url", role.replace(dbname="postgres").url).stdout
    assert "not compared: public.hidden: " in shown
    assert "as far as it was compared" in shown
