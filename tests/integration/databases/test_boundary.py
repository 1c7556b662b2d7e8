"""A source may not leave the database being built: nothing else is written, and it is looked
through before anything runs."""

from __future__ import annotations

import ast
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.errors import BuildFailed
from dbclone.schema.sources import Command, SqlFiles
from dbclone.server.dsn import Dsn
from dbclone.server.server import Server
from dbclone.settings import Settings, load
from dbclone.template.template import Template

from ...conftest import Project
from ...oracle import fingerprint
from ...shop import cloned
from ..decoys import logging

STATE = "SELECT oid, datname, datdba, datacl::text, datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database"
ROLES = (
    "SELECT rolname, rolcanlogin, rolsuper, shobj_description(oid, 'pg_authid'),"
    " (SELECT array_agg(setconfig) FROM pg_db_role_setting WHERE setrole = r.oid),"
    " (SELECT array_agg(roleid ORDER BY roleid) FROM pg_auth_members WHERE member = r.oid)"
    " FROM pg_roles r ORDER BY rolname"
)


class Developer:
    """A developer's database with rows, on a server that is not dbclone's as far as it can tell;
    `role` owns it."""

    def __init__(self, server: Server, role: Dsn, name: str) -> None:
        self.server, self.role, self.name = server, role, name
        identifier = sql.Identifier(name)
        run = server.connection.execute
        run(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                identifier, sql.Identifier(role.get("user"))
            )
        )
        self.dsn = role.replace(dbname=name)
        with psycopg.connect(self.dsn.url, autocommit=True) as connection:
            connection.execute(
                "CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, note text)"
            )
            connection.execute(
                "INSERT INTO shop.orders SELECT g, 'kept' FROM generate_series(1, 1000) g"
            )
            connection.execute(sql.SQL("ALTER DATABASE {} SET work_mem = '7MB'").format(identifier))
            connection.execute(
                sql.SQL("COMMENT ON DATABASE {} IS 'a developer''s'").format(identifier)
            )
        self.before = self.state()

    def state(self) -> tuple[list[Any], list[Any], Any]:
        """Return all that must not change: databases, roles, and the rows and objects of this one."""
        return (
            self.server.fetch(f"{STATE} ORDER BY oid"),
            self.server.fetch(ROLES),
            fingerprint(self.server.database(self.name).url),
        )

    def untouched(self) -> None:
        assert self.state() == self.before

    def drop(self) -> None:
        self.server.connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name))
        )


@pytest.fixture
def developer(server: Server, role: Dsn) -> Iterator[Developer]:
    found = Developer(server, role, f'it\'s "dev" {uuid.uuid4().hex[:6]}')
    yield found
    found.drop()


BAD = {
    "a database dropped": "DROP DATABASE IF EXISTS {dev};",
    "behind a comment": "-- the old one\n/* goes */ DROP /* now */ DATABASE {dev};",
    "a database altered": "ALTER DATABASE {dev} RENAME TO away;",
    "a grant on a database": "GRANT ALL ON DATABASE {dev} TO PUBLIC;",
    "a comment on a database": "COMMENT ON DATABASE {dev} IS 'gone';",
    "a connect": "\\connect {dev}\nDROP TABLE shop.orders;",
    "a connect in the middle of a line": "SELECT 1; \\c {dev}\nDROP TABLE shop.orders;",
    "a connect after the beginning of a statement": "SELECT 1 \\c {dev}\n;DROP TABLE shop.orders;",
    "two databases": "CREATE DATABASE x1;\n\\connect x1\nCREATE TABLE t ();\nCREATE DATABASE x2;\n\\connect" " x2\n",
    "a role": "CREATE ROLE somebody_new;",
    "a role in a block": "DO $$ BEGIN CREATE ROLE somebody_new; EXCEPTION WHEN" " duplicate_object THEN NULL; END $$;",
    "a role's setting": "ALTER ROLE {role} SET work_mem = '1MB';",
    "a membership": "GRANT {role} TO pg_monitor;",
    "the system": "ALTER SYSTEM SET work_mem = '1MB';",
    "a tablespace": "CREATE TABLESPACE fast LOCATION '/tmp';",
    "a subscription": "CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere'" " PUBLICATION p WITH (connect = false);",
    "a server": "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;",
    "a program": "COPY (SELECT 1) TO PROGRAM 'cat';",
    "a file": "COPY (SELECT 1) TO '/tmp/somewhere';",
    "sessions ended": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity" " WHERE pid <> pg_backend_pid();",
    "a function that is called": "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql"
    " AS $$ BEGIN EXECUTE 'CREATE ROLE somebody_new'; END $$;\nSELECT f();",
}  # fmt: skip


def test_nothing_runs_if_the_second_of_three_files_leaves(
    server: Server, settings: Settings, tmp_path: Path, developer: Developer
) -> None:
    """Not a statement of the first, nor is a database made to build in: for a plain role, and for a
    superuser who may do it all."""
    (tmp_path / "1.sql").write_text("CREATE TABLE first (id int);")
    (tmp_path / "3.sql").write_text("CREATE TABLE third (id int);")
    name, owner = (
        sql.Identifier(developer.name).as_string(None),
        sql.Identifier(developer.role.get("user")).as_string(None),
    )
    with logging(server) as log:
        for who in (developer.role, server.dsn):
            with Server.open(settings, who) as plain:
                begin = log.stat().st_size
                for kind, text in BAD.items():
                    (tmp_path / "2.sql").write_text(
                        f"\n{text.replace('{dev}', name).replace('{role}', owner)}\n"
                    )
                    own = load(
                        tmp_path,
                        {
                            "schema": ["1.sql", "2.sql", "3.sql"],
                            "name": "bad",
                            "cache_dir": settings.cache_dir,
                        },
                        {},
                    )
                    with pytest.raises(BuildFailed, match=r"^2\.sql:\d+: ") as caught:
                        Template.ensure(plain, handles.load(own)[0])
                    assert "Nothing has been run." in caught.value.detail, kind
                    assert caught.value.hint, kind
                with log.open("rb") as file:
                    file.seek(begin)
                    said = file.read().decode()
                assert "pg_auth_members" in said, "the log shows what was run"
                for trace in (
                    "CREATE DATABASE",
                    "TABLE first",
                    "1.sql",
                    "somebody_new",
                    "ALTER ROLE",
                ):
                    assert trace not in said
    developer.untouched()


def dumped(developer: Developer, *options: str) -> str:
    """Return what pg_dump writes of the developer's database, with the version that the server has."""
    assert developer.server.embedded is not None
    program = developer.server.embedded.cluster.binaries.folder / "pg_dump"
    if not program.is_file():
        pytest.skip("this build has no pg_dump")
    dsn = developer.server.database(developer.name)
    command = [
        str(program),
        "-h",
        dsn.get("host"),
        "-p",
        dsn.get("port"),
        "-U",
        dsn.get("user"),
        *options,
        developer.name,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "how", [["--create", "--clean", "--if-exists"], ["--create"]], ids=" ".join
)
def test_a_dump_made_with_create_is_a_dump_into_the_build(
    how: list[str], project: Project, developer: Developer
) -> None:
    """On a server of somebody's own: what it says of the database holds for the clones, and nothing
    else is done."""
    project.configure(
        schema="structure.sql", bind=None, url=developer.role.replace(dbname="postgres").url
    )
    with psycopg.connect(
        developer.server.database(developer.name).url, autocommit=True
    ) as connection:
        connection.execute(
            "CREATE ROLE reader_of_orders; GRANT SELECT ON shop.orders TO reader_of_orders"
        )
        try:
            text = dumped(developer, *how)
        finally:
            connection.execute("DROP OWNED BY reader_of_orders; DROP ROLE reader_of_orders")
    assert "\\connect" in text
    assert "\nCREATE DATABASE" in text
    (project.folder / "structure.sql").write_text(text)
    developer.before = developer.state()
    done = project.run("dbclone", "prepare")
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("structure.sql: ")]
    assert len(shown) == 3, done.stdout
    assert f"CREATE DATABASE {developer.name}" in shown[0]
    assert "\\connect" in shown[0]
    assert "COMMENT ON DATABASE" in shown[0]
    assert shown[1].startswith("structure.sql: run on the database being built")
    assert "there is no role reader_of_orders: GRANT" in shown[2]
    project.write(
        test_a="""
        def test_a(dbclone):
            assert dbclone.execute("SELECT count(*), min(note) FROM shop.orders").fetchone() == (1000, "kept")
            assert dbclone.execute("SHOW work_mem").fetchone() == ("7MB",)
        """
    )
    done = project.pytest("-q", DBCLONE_RESET="drop")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    made = developer.server.fetch(
        "SELECT oid FROM pg_database WHERE datname ~ %s", [f"^dbclone_{project.name}_"]
    )
    databases, roles, rows = developer.state()
    assert ([row for row in databases if (row[0],) not in made], roles, rows) == developer.before


def test_a_run_says_what_its_build_left_out(project: Project, server: Server) -> None:
    project.configure(schema="structure.sql", bind=None)
    (project.folder / "structure.sql").write_text(
        "\ufeffCREATE DATABASE shopdev;\n\\c shopdev\n\\echo making it\nCREATE TABLE orders"
        " (id int);\n",
        encoding="utf-8",
    )
    project.write(
        test_a="def test_a(dbclone): assert dbclone.execute('SELECT count(*) FROM"
        " orders').fetchone() == (0,)\n"
    )
    done = project.pytest("-q")
    assert "1 passed" in done.stdout
    assert (
        "structure.sql: left out, because shopdev stands for the database being built:"
        " CREATE DATABASE shopdev, \\connect shopdev" in done.stdout
    )
    assert not server.fetch("SELECT FROM pg_database WHERE datname = 'shopdev'")


def test_roles_that_a_schema_makes_or_names_are_there_on_the_private_server(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """Also at the second build; a role that is only named has no rights but those that the schema
    gives it."""
    made, named, block = (f"{kind}_{uuid.uuid4().hex[:6]}" for kind in ("made", "named", "block"))
    schema = """
        CREATE ROLE {made} LOGIN; ALTER ROLE {made} SET work_mem = '7MB';
        DO $$ BEGIN CREATE ROLE {block}; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT {block} TO {made};
        CREATE TABLE item (id int); ALTER TABLE item OWNER TO {made}; GRANT SELECT ON item TO {named}, {block};
        CREATE POLICY p ON item TO {named}, PUBLIC USING (true);
        SET SESSION AUTHORIZATION '{named}'; CREATE TABLE public.other (id int); RESET SESSION AUTHORIZATION;
        SET ROLE {made}; INSERT INTO item VALUES (1); RESET ROLE;
    """
    for name in (made, named, block):
        schema = schema.replace("{" + name.partition("_")[0] + "}", name)
    templates = []
    try:
        for _ in range(2):
            with cloned(server, settings, tmp_path, schema) as clone, clone.connect() as connection:
                templates.append(sql.Identifier(clone.template.name))
                assert connection.execute(
                    "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'item'"
                ).fetchone() == (made,)
                assert connection.execute(
                    "SELECT has_table_privilege(%s, 'item', 'SELECT')", [named]
                ).fetchone() == (True,)
                assert connection.execute("SELECT count(*) FROM item, other").fetchone() == (0,)
        rows = server.fetch(
            "SELECT rolname::text, rolcanlogin, rolsuper OR rolcreatedb OR rolcreaterole OR"
            " rolbypassrls FROM pg_roles"
            " WHERE rolname = ANY(%s) ORDER BY 1",
            [[made, named, block]],
        )
        assert rows == [(block, False, False), (made, True, False), (named, False, False)]
    finally:
        for template in templates:
            server.connection.execute(
                sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(template)
            )
            server.connection.execute(sql.SQL("DROP DATABASE {}").format(template))
        for name in (made, named, block):
            server.connection.execute(
                sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name))
            )


@pytest.mark.parametrize(
    "line",
    ["psql -X -v ON_ERROR_STOP=1 -f structure.sql", "psql -f structure.sql -X", "createdb shopdev"],
)
def test_a_command_of_postgresql_that_leads_elsewhere_is_refused(
    line: str, project: Project, developer: Developer
) -> None:
    """cases/hint_for_psql, both."""
    project.configure(
        schema=line,
        bind=None,
        inputs=["structure.sql"],
        url=developer.role.replace(dbname="postgres").url,
    )
    name = sql.Identifier(developer.name).as_string(None)
    (project.folder / "structure.sql").write_text(
        f"DROP DATABASE {name};\nCREATE DATABASE {name};\n\\connect {name}\nCREATE TABLE t ();\n"
    )
    done = project.run("dbclone", "prepare")
    assert done.returncode == 1
    assert "the command would reach beyond the database being built: " in done.stderr
    assert "Nothing has been run." in done.stderr
    assert "psql -X" not in done.stderr.partition("HINT")[2]
    done = project.run("dbclone", "doctor", "--no-measures", "--json")
    assert "would reach beyond the database being built" in done.stdout
    developer.untouched()


def test_a_file_whose_name_has_spaces_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "my schema.sql").write_text("SELECT 1;")
    for spec, kind in {
        "my schema.sql": SqlFiles,
        "no such.sql": SqlFiles,
        "db/*.sql": SqlFiles,
        "psql -X -v ON_ERROR_STOP=1 -f structure.sql": Command,
        "cat structure.sql": Command,
    }.items():
        assert isinstance(handles.load(load(tmp_path, {"schema": [spec]}, {}))[0], kind), spec


def test_a_template_is_built_again_when_a_role_that_it_lacked_is_there(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn
) -> None:
    """What a build does without depends on the server's roles, so the template does, too."""
    late = f"late_{uuid.uuid4().hex[:6]}"
    (tmp_path / "a.sql").write_text(f"CREATE TABLE item (id int); GRANT SELECT ON item TO {late};")
    own = load(
        tmp_path,
        {
            "schema": ["a.sql"],
            "name": f"late{uuid.uuid4().hex[:6]}",
            "cache_dir": settings.cache_dir,
        },
        {},
    )
    with Server.open(own, role) as plain:
        first = Template.ensure(plain, handles.load(own)[0])
        assert first.notes == (f"a.sql: left out, because there is no role {late}: GRANT",)
        assert not Template.ensure(plain, handles.load(own)[0]).built
        plain.leases.release(first.name, shared=True)
        server.connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(late)))
        try:
            second = Template.ensure(plain, handles.load(own)[0])
            assert (second.built, second.why) == (True, (f"role {late} was not there and is now",))
            assert second.notes == ()
        finally:
            server.connection.execute(
                sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(first.name))
            )
            server.connection.execute(
                sql.SQL("DROP DATABASE {}").format(sql.Identifier(first.name))
            )
            server.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(late)))


def test_no_hint_advises_to_write_elsewhere() -> None:
    """Neither to let psql run a file, which follows \\connect, nor to drop or alter what is not
    dbclone's."""
    advice = re.compile(
        r"(?<!`)psql -\w|by hand|REINDEX there|UPDATE pg_database|DROP DATABASE name"
    )
    for path in sorted(Path(handles.__file__).parent.parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not advice.search(node.value), f"{path.name}:{node.lineno}"
