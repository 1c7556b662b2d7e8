"""What statements, lines of psql and command lines reach beyond the database that they run in: pure
text."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbclone.errors import BuildFailed
from dbclone.schema.programs import elsewhere
from dbclone.schema.scripts import Roles, Script, ScriptPlan, plans
from dbclone.sql.reach import CONNECT, HARMLESS, PSQL, calls, command, naming, plants, reach

BEYOND = {
    "DROP DATABASE shop": "DROP DATABASE shop",
    "drop /* x */ -- y\n dataBase IF EXISTS Shop WITH (FORCE)": "DROP DATABASE shop",
    "/* of /* course */ */ CREATE DATABASE \"Odd \"\" name\"": 'CREATE DATABASE Odd " name',
    "ALTER DATABASE shop SET work_mem = '7MB'": "ALTER DATABASE shop",
    "ALTER DATABASE shop RENAME TO other": "ALTER DATABASE shop",
    "COMMENT ON DATABASE shop IS 'x'": "COMMENT ON DATABASE shop",
    "SECURITY LABEL FOR x ON DATABASE shop IS 'x'": "SECURITY LABEL ON DATABASE shop",
    "GRANT CONNECT ON DATABASE shop, other TO webapp": "GRANT ON DATABASE shop, other",
    "REVOKE ALL PRIVILEGES ON DATABASE shop FROM PUBLIC": "REVOKE ON DATABASE shop",
    "REINDEX (VERBOSE) DATABASE shop": "REINDEX DATABASE",
    "REINDEX SYSTEM shop": "REINDEX SYSTEM",
    "ALTER SYSTEM SET fsync = off": "ALTER SYSTEM",
    "CREATE TABLESPACE fast LOCATION '/fast'": "CREATE TABLESPACE",
    "GRANT CREATE ON TABLESPACE fast TO webapp": "GRANT ON TABLESPACE",
    "GRANT SET ON PARAMETER work_mem TO webapp": "GRANT ON PARAMETER",
    "CREATE USER bob PASSWORD 'x'": "CREATE USER bob",
    "ALTER ROLE bob SET work_mem = 1": "ALTER ROLE bob",
    "ALTER ROLE ALL RESET ALL": "ALTER ROLE ALL",
    "ALTER USER bob IN DATABASE shop SET work_mem = 1": "ALTER USER bob IN DATABASE shop",
    "DROP GROUP IF EXISTS bob, eve": "DROP GROUP bob, eve",
    "GRANT readers TO bob WITH ADMIN OPTION": "GRANT readers TO bob",
    "REVOKE ADMIN OPTION FOR readers FROM bob": "REVOKE readers FROM bob",
    "COMMENT ON ROLE bob IS 'x'": "COMMENT ON ROLE bob",
    "DROP OWNED BY bob": "DROP OWNED",
    "REASSIGN OWNED BY bob TO eve": "REASSIGN OWNED",
    "CREATE SUBSCRIPTION s CONNECTION 'host=x' PUBLICATION p": "CREATE SUBSCRIPTION",
    "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw": "CREATE SERVER",
    "CREATE USER MAPPING FOR CURRENT_USER SERVER far": "CREATE USER MAPPING",
    "IMPORT FOREIGN SCHEMA public FROM SERVER far INTO public": "IMPORT FOREIGN SCHEMA",
    "COPY t FROM '/tmp/t.csv'": "COPY FROM a file of the server",
    "COPY (SELECT 'FROM' FROM t) TO E'/tmp/t.csv' CSV": "COPY TO a file of the server",
    "COPY t TO PROGRAM 'rm -rf /'": "COPY TO PROGRAM",
    "SELECT public.dblink_exec('dbname=shop', 'DROP TABLE t')": "a call of dblink_exec",
    "WITH x AS (SELECT \"dblink_connect\" ('dbname=shop')) TABLE x": "a call of dblink_connect",
    "CREATE TABLE t AS SELECT * FROM" " dblink('dbname=shop', 'SELECT 1') AS x (y int)": "a call of dblink",
    "SELECT pg_create_logical_replication_slot('s', 'test_decoding')": "a call of pg_create_logical_replication_slot",
    "SELECT pg_terminate_backend(pid) FROM" " pg_stat_activity WHERE datname = 'shop'": "a call of pg_terminate_backend",
    "SELECT lo_export(1, '/tmp/x')": "a call of lo_export",
    "SELECT pg_read_file('/etc/passwd')": "a call of pg_read_file",
    "UPDATE pg_catalog.pg_database SET datallowconn = false": "UPDATE of pg_database",
    "DELETE FROM ONLY pg_authid": "DELETE of pg_authid",
    "INSERT INTO pg_db_role_setting VALUES (0, 0, NULL)": "INSERT of pg_db_role_setting",
    "DO $$ BEGIN CREATE ROLE webapp; EXCEPTION WHEN" " duplicate_object THEN NULL; END $$": "CREATE ROLE webapp",
    "DO $x$ BEGIN IF NOT EXISTS (SELECT) THEN CREATE" " USER webapp; END IF; END $x$": "CREATE USER webapp",
    "DO LANGUAGE plpgsql 'BEGIN EXECUTE ''CREATE ROLE webapp''; END'": "CREATE ROLE webapp",
    "DO $$ BEGIN EXECUTE format('DROP DATABASE %I', 'shop'); END $$": "DROP DATABASE",
    "DO $$ DECLARE x text; BEGIN x :=" " dblink_exec('dbname=shop', 'DROP TABLE t'); END $$": "a call of dblink_exec",
    "DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS ''x''', current_database()); END" " $$": "COMMENT ON DATABASE",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO" " bob', current_database()); END $$": "ALTER DATABASE",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET" " work_mem = 1', 'shop'); END $$": "ALTER DATABASE",
    "SET SESSION standard_conforming_strings = 'off'": "SET standard_conforming_strings",
    "SELECT 'DROP DATABASE shop' \\gexec": "\\gexec",
    "SELECT 1 \\c shop": "\\c",
    "SELECT 1\n  \\! rm -rf /": "\\!",
}  # fmt: skip


@pytest.mark.parametrize("text", BEYOND)
def test_what_reaches_beyond_is_told(text: str) -> None:
    assert [one.what for one in reach(text)] == [BEYOND[text]]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'DROP DATABASE shop; \\connect shop'",
        "INSERT INTO log VALUES ($$DROP DATABASE shop$$, E'\\\\connect shop \\'')",
        "/* DROP DATABASE shop */ SELECT 1 -- \\connect shop",
        'CREATE TABLE "DROP DATABASE" (role text, "user" text, server text, tablespace text,'
        ' "\\connect" int)',
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM"
        " dblink_exec('', 'DROP DATABASE shop'); END $$",
        "CREATE VIEW far AS SELECT * FROM dblink('dbname=shop', 'SELECT 1') AS x (y int)",
        "CREATE FUNCTION dblink_exec(text) RETURNS text LANGUAGE c AS '$libdir/dblink'",
        "GRANT EXECUTE ON FUNCTION dblink_exec(text) TO webapp",
        "GRANT SELECT (a, b), UPDATE (c) ON t TO webapp",
        "COMMENT ON COLUMN t.role IS 'DROP DATABASE shop'",
        "COMMENT ON TABLE t IS 'x'",
        "COPY t (a, role) FROM stdin WITH (FORMAT csv)",
        "COPY pg_database TO STDOUT",
        "ALTER TABLE t OWNER TO bob",
        "ALTER TABLE t SET TABLESPACE fast",
        "ALTER TABLE role ADD COLUMN database text",
        "CREATE TABLE t (a int) TABLESPACE fast",
        "SELECT database, role, server FROM system WHERE program = 'copy' FOR UPDATE",
        "UPDATE accounts.pg_database SET x = 1",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "DROP SERVER IF EXISTS far CASCADE",
        "CREATE EXTENSION dblink",
        "DO $$ BEGIN RAISE NOTICE 'DROP DATABASE shop'; END $$",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 1',"
        " current_database()); END $$",
        "DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO webapp',"
        " current_database()); END $$",
        "REINDEX TABLE t",
        "SET ROLE webapp",
        "SET standard_conforming_strings = on",
    ],
)
def test_what_stays_inside_is_nothing(text: str) -> None:
    assert reach(text) == ()


@pytest.mark.parametrize(
    ("line", "kind", "name"),
    [
        ("\\connect shop", CONNECT, "shop"),
        ("\\c", CONNECT, ""),
        ("\\c -", CONNECT, ""),
        ("\\c shop - - -", CONNECT, "shop"),
        ('\\connect "Odd ""name"""', CONNECT, 'Odd "name"'),
        ("\\connect -reuse-previous=on \"dbname='it\\'s odd'\"", CONNECT, "it's odd"),
        ("\\c shop dev", PSQL, ""),
        ("\\c shop - elsewhere 5432", PSQL, ""),
        ("\\c :db", PSQL, ""),
        ("\\connect postgresql://u:p@h/d", PSQL, ""),
        ("\\connect 'host=elsewhere dbname=shop'", PSQL, ""),
        ("\\restrict abc", HARMLESS, None),
        ("\\unrestrict abc", HARMLESS, None),
        ("\\set ON_ERROR_STOP on", HARMLESS, None),
        ("\\echo it is done", HARMLESS, None),
        ("\\pset pager off", HARMLESS, None),
        ("\\encoding UTF8", HARMLESS, None),
        ("\\encoding LATIN1", PSQL, None),
        ("\\dt", HARMLESS, None),
        ("\\echo `rm -rf /`", PSQL, None),
        ("\\echo a \\connect shop", PSQL, None),
        ("\\restrict abc \\! rm", PSQL, None),
        ("\\set shop shopdev", PSQL, None),
        ("\\i other.sql", PSQL, None),
        ("\\copy t from program 'rm'", PSQL, None),
        ("\\q", PSQL, None),
    ],
)
def test_lines_of_psql(line: str, kind: str, name: str | None) -> None:
    found = command(line)
    assert found.kind == kind
    assert name is None or found.names == (name,)


def test_a_function_reaches_when_it_is_called() -> None:
    name, inside = plants(
        "CREATE OR REPLACE FUNCTION s.wipe() RETURNS void AS $$ BEGIN PERFORM"
        " dblink_exec(''); END $$ LANGUAGE plpgsql"
    )
    assert (name, [one.what for one in inside]) == ("wipe", ["a call of dblink_exec"])
    assert plants("CREATE FUNCTION count() RETURNS int LANGUAGE sql AS 'SELECT 1'")[1] == ()
    assert list(calls("SELECT s.wipe()")) == ["wipe"]
    assert list(calls("GRANT EXECUTE ON FUNCTION s.wipe() TO x")) == []


@pytest.mark.parametrize(
    ("text", "names", "rest"),
    [
        ("ALTER TABLE t OWNER TO gone", ("gone",), None),
        ("ALTER TABLE t ADD a int, OWNER TO gone", ("gone",), "ALTER TABLE t ADD a int"),
        ("GRANT SELECT ON t TO gone, here WITH" " GRANT OPTION", ("gone", "here"), "GRANT SELECT ON t TO here WITH GRANT" " OPTION"),
        ("GRANT SELECT ON t TO here, \"gone\"," " PUBLIC", ("here", "gone"), "GRANT SELECT ON t TO here, PUBLIC"),
        ("REVOKE ALL ON SCHEMA s FROM gone CASCADE", ("gone",), None),
        ("CREATE POLICY p ON t TO gone, here" " USING (a)", ("gone", "here"), "CREATE POLICY p ON t TO here USING (a)"),
        ("CREATE POLICY p ON t TO gone USING (true)", ("gone",), None),
        ("CREATE SCHEMA s AUTHORIZATION gone", ("gone",), "CREATE SCHEMA s"),
        ("CREATE SCHEMA AUTHORIZATION gone CREATE" " TABLE t ()", ("gone",), "CREATE SCHEMA gone CREATE TABLE t ()"),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE gone GRANT" " SELECT ON TABLES TO here", ("gone", "here"), None),
        (
            "ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT SELECT ON TABLES TO here, gone",
            ("here", "gone"),
            "ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT SELECT ON TABLES TO here",
        ),
        ("SET SESSION AUTHORIZATION 'gone'", ("gone",), None),
        ("SET LOCAL ROLE gone", ("gone",), None),
        ("set role to gone", ("gone",), None),
    ],
)  # fmt: skip
def test_roles_that_a_statement_names_can_be_left_out(
    text: str, names: tuple[str, ...], rest: str | None
) -> None:
    found = naming(text)
    assert found is not None
    assert found.names == names
    assert found.without(frozenset({"gone"})) == rest


@pytest.mark.parametrize(
    "text",
    ["REVOKE ALL ON t FROM PUBLIC", "ALTER TABLE t OWNER TO CURRENT_USER", "SET ROLE NONE", "SET SESSION AUTHORIZATION DEFAULT",
     "ALTER POLICY p ON t RENAME TO q", "SELECT owner FROM role", "RESET ROLE", "SET search_path = role"],
)  # fmt: skip
def test_what_names_no_role_is_left_alone(text: str) -> None:
    assert naming(text) is None


def ran(plan: ScriptPlan) -> list[str]:
    return [statement.text for statement in plan.statements()]


SOMEBODYS = Roles(
    private=False,
    me="dev",
    there=frozenset({"dev", "here", "readers"}),
    members=frozenset({("readers", "here")}),
)
OURS = Roles(private=True, me="postgres", there=frozenset({"postgres", "here"}), maker=True)


def test_roles_on_a_server_of_somebodys_own_are_never_made() -> None:
    text = (
        "CREATE ROLE here; ALTER ROLE here LOGIN; GRANT readers TO here; GRANT SELECT ON t"
        " TO here, gone;"
        "ALTER TABLE t OWNER TO gone;"
        "DO $$ BEGIN CREATE ROLE here; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        " DROP ROLE IF EXISTS nobody; SET ROLE gone"
    )
    (plan,), missing = plans([Script("a.sql", text)], SOMEBODYS)
    assert ran(plan) == ["GRANT SELECT ON t TO here"]
    assert missing == []
    assert plan.notes == [
        "left out, because the roles of the server are as they are: 2 × CREATE ROLE here,"
        " ALTER ROLE here, GRANT readers TO here,"
        " DROP ROLE nobody",
        "left out, because there is no role gone: GRANT, OWNER, SET ROLE",
    ]
    for refused in (
        "CREATE ROLE gone",
        "ALTER ROLE here LOGIN",
        "DROP ROLE here",
        "GRANT here TO readers",
        "ALTER USER dev SUPERUSER",
        "DO $$ BEGIN CREATE ROLE gone; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "DO $$ BEGIN EXECUTE format('CREATE ROLE %I', 'gone'); END $$",
    ):
        with pytest.raises(BuildFailed, match=r"a\.sql:1: .* reaches beyond"):
            plans([Script("a.sql", refused)], SOMEBODYS)


def test_roles_on_the_private_server_are_made_once() -> None:
    text = "CREATE ROLE here; CREATE ROLE new; ALTER ROLE new LOGIN; GRANT new TO here; GRANT SELECT ON t TO named; SET ROLE named"
    (plan,), missing = plans([Script("a.sql", text)], OURS)
    assert ran(plan) == [
        "CREATE ROLE new",
        "ALTER ROLE new LOGIN",
        "GRANT new TO here",
        "GRANT SELECT ON t TO named",
    ]
    assert missing == ["named"]
    for refused in (
        "ALTER ROLE postgres NOSUPERUSER",
        "DROP ROLE here",
        "ALTER ROLE here SUPERUSER",
        "ALTER ROLE ALL SET role = x",
    ):
        with pytest.raises(BuildFailed, match="reaches beyond"):
            plans([Script("a.sql", refused)], OURS)
    (plan,), _ = plans(
        [Script("a.sql", "CREATE ROLE postgres; ALTER ROLE postgres WITH SUPERUSER PASSWORD 'x'")],
        OURS,
    )
    assert ran(plan) == [], "as pg_dumpall writes it"


DUMP = "\\restrict x\nSET a = 1;\nDROP DATABASE shop;\nCREATE DATABASE shop;\n\\connect shop\nCREATE TABLE t ();\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("CREATE DATABASE shop;\nCREATE TABLE t ();", 1),
        ("CREATE TABLE t ();\n\\connect shop\n", 2),
        (DUMP + "\\connect other\nCREATE TABLE u ();\n", 3),
        (DUMP + "DROP DATABASE shop;\n", 7),
        ("SET a = 1;\nDROP DATABASE other;\n" + DUMP, 2),
        ("CREATE TABLE junk ();\n" + DUMP, 4),
        (DUMP + "CREATE DATABASE other;\n\\connect other\n", 3),
        ("\\connect shop\nCREATE DATABASE shop;\n", 1),
        (
            "CREATE FUNCTION f() RETURNS void AS $$ BEGIN PERFORM dblink('', ''); END $$"
            " LANGUAGE plpgsql;\nSELECT f();\n",
            2,
        ),
        ("SELECT 1;\n\nSELECT 'x'\n  \\gexec\n", 4),
    ],
)
def test_a_file_that_works_elsewhere_is_refused_by_line(text: str, line: int) -> None:
    with pytest.raises(BuildFailed, match=rf"^b\.sql:{line}: ") as caught:
        plans([Script("a.sql", "CREATE TABLE first ();"), Script("b.sql", text)], SOMEBODYS)
    assert "Nothing has been run." in caught.value.detail
    assert "psql" not in caught.value.hint


def test_a_dump_into_the_build_leaves_the_database_out() -> None:
    text = (
        DUMP.replace(
            "\\connect",
            "GRANT CONNECT ON DATABASE shop TO here;\nCOMMENT ON DATABASE shop IS 'x';\n\\connect",
        )
        + "ALTER DATABASE shop SET a TO 'b';\nALTER ROLE here IN DATABASE shop SET c TO 'd';\n"
        "ALTER ROLE gone IN DATABASE shop SET c TO 1;\n"
        "COPY t FROM stdin;\n\\connect other\nDROP DATABASE shop;\n\\.\n\\unrestrict x\n"
    )
    (plan,), _ = plans([Script("a.sql", text)], SOMEBODYS, 'the "build"')
    assert ran(plan) == [
        "SET a = 1",
        'GRANT CONNECT ON DATABASE "the ""build""" TO here',
        "CREATE TABLE t ()",
        'ALTER DATABASE "the ""build""" SET a TO \'b\'',
        'ALTER ROLE here IN DATABASE "the ""build""" SET c TO \'d\'',
        "COPY t FROM stdin",
    ]
    assert plan.notes[0] == (
        "left out, because shop stands for the database being built: DROP DATABASE shop,"
        " CREATE DATABASE shop,"
        " COMMENT ON DATABASE shop, \\connect shop, ALTER ROLE gone IN DATABASE shop"
    )
    assert plan.notes[1].startswith(
        "run on the database being built instead of shop: GRANT ON DATABASE shop, ALTER"
        " DATABASE shop"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("createdb shop", "createdb"),
        ("/usr/bin/dropdb --if-exists shop", "dropdb"),
        ("env A=b createuser bob", "createuser"),
        ("sh -c 'createdb shop && psql -f clean.sql'", "createdb"),
        ("psql -f dump.sql", "DROP DATABASE shop"),
        ("psql -X -v ON_ERROR_STOP=1 --file=dump.sql", "DROP DATABASE shop"),
        ("psql -Xqfdump.sql", "DROP DATABASE shop"),
        ("bash -ec 'psql -X < dump.sql'", "DROP DATABASE shop"),
        ("psql -f includes.sql", "DROP DATABASE shop"),
        ("psql -c 'DROP DATABASE shop'", "DROP DATABASE shop"),
        ("psql -c 'SELECT 1' -c '\\connect shop'", "\\connect shop"),
        ("psql -f shell.sql", "\\!"),
        ("psql -d shop -f clean.sql", "psql shop"),
        ("psql shop -f clean.sql", "psql shop"),
        ("psql --host elsewhere -f clean.sql", "psql elsewhere"),
        ("psql -f role.sql", "CREATE ROLE gone"),
        ("pg_restore -C -d postgres shop.dump", "pg_restore --create"),
        ("pg_restore --no-owner -cCd postgres shop.dump", "pg_restore --create"),
        ("pg_restore -d shopdev shop.dump", "pg_restore shopdev"),
    ],
)
def test_programs_that_go_elsewhere(line: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path)
    assert elsewhere(line, tmp_path, SOMEBODYS)[0].what == expected


@pytest.mark.parametrize(
    "line",
    [
        "psql -X -v ON_ERROR_STOP=1 -f clean.sql",
        "sh -c 'psql \"$DATABASE_URL\" -f clean.sql'",
        "sh -c 'pg_restore -j 4 -d \"$PGDATABASE\" shop.dump'",
        "psql -f missing.sql",
        "psql -c 'CREATE TABLE t ()'",
        "make createdb",
        "alembic upgrade head",
        "python manage.py dropdb",
        "echo 'unclosed",
    ],
)
def test_programs_that_stay(line: str, tmp_path: Path) -> None:
    write(tmp_path)
    assert elsewhere(line, tmp_path, SOMEBODYS) == []


def write(folder: Path) -> None:
    (folder / "dump.sql").write_text(DUMP)
    (folder / "clean.sql").write_text(
        "\\set x 1\n\\if :x\nCREATE TABLE t ();\n\\endif\n\\copy t from 't.csv'\n\\c\n"
    )
    (folder / "includes.sql").write_text("\\i clean.sql\n\\ir dump.sql\n")
    (folder / "shell.sql").write_text("SELECT 1; \\! touch x\n")
    (folder / "role.sql").write_text("CREATE ROLE gone;\n")
