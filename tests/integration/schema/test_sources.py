"""SQL files, commands and callables as schemas: what they build, when they are built again, and
what they say when they fail."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dbclone.adapters import handles
from dbclone.errors import BuildFailed, SettingsError
from dbclone.schema.manifest import Manifest
from dbclone.schema.sources import Schema
from dbclone.server.server import Server
from dbclone.settings import load


def quiet(text: str) -> None:
    pass


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """An empty database, as the role that a password is asked of would see it."""
    name = psycopg.sql.Identifier(f"empty_{uuid.uuid4().hex[:8]}")
    server.connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(name))
    yield server.database(name._obj[0]).replace(password="s3cr3t").url
    server.connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def schema(folder: Path, *specs: str, **options: object) -> Schema:
    return handles.load(load(folder, {"schema": list(specs), **options}, {}))[0]


def test_sql_files_run_in_natural_order_and_everything_psql_would_run_runs(
    tmp_path: Path, url: str
) -> None:
    (tmp_path / "10_last.sql").write_text("INSERT INTO log SELECT 'last', count(*) FROM t;")
    (tmp_path / "2_first.sql").write_text(
        "CREATE TABLE t (a int, b text);\nCREATE TABLE log (what text, n int);\n"
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$;\n"
        "DO $x$ BEGIN INSERT INTO t VALUES (f(), 'a;b'); END $x$;\n"
        "CREATE INDEX CONCURRENTLY ON t (a);\nBEGIN; INSERT INTO t VALUES (2, '100%'); COMMIT;\n"
        "SET search_path = ''; -- this session's own\n"
        "COPY public.t (a, b) FROM stdin;\n3\tthree\n\\.\n"
    )
    schema(tmp_path, "*.sql").build(url, quiet)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT * FROM log").fetchall() == [("last", 3)]
        assert connection.execute("SELECT b FROM t ORDER BY a").fetchall() == [
            ("a;b",),
            ("100%",),
            ("three",),
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "CREATE TABLE a ();\n\nCREATE TABLE b (\n  x nonsense\n);",
            ['bad.sql:3: type "nonsense" does not exist', "x nonsense"],
        ),
        ("SELECT 1;\n\\i other.sql\n", ["bad.sql:2: \\i is a command of psql"]),
        ("BEGIN;\nCREATE TABLE a ();\n", ["bad.sql ends inside a transaction"]),
        ("INSERT INTO nowhere VALUES (1)", ['bad.sql:1: relation "nowhere" does not exist']),
    ],
)
def test_a_failing_file_names_line_and_statement(
    tmp_path: Path, url: str, text: str, expected: list[str]
) -> None:
    (tmp_path / "bad.sql").write_text(text)
    with pytest.raises(BuildFailed) as caught:
        schema(tmp_path, "bad.sql").build(url, quiet)
    for part in expected:
        assert part in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_an_error_in_a_statement_of_megabytes_quotes_its_beginning(
    tmp_path: Path, url: str
) -> None:
    """So do the lines that tell how far a build is."""
    (tmp_path / "long.sql").write_text(
        f"SELECT 1;\nINSERT INTO nowhere VALUES ('{'x' * 5_000_000}');"
    )
    steps: list[str] = []
    with pytest.raises(
        BuildFailed, match=r'long\.sql:2: relation "nowhere" does not exist'
    ) as caught:
        schema(tmp_path, "long.sql").build(url, steps.append)
    assert "INSERT INTO nowhere VALUES ('xxx" in caught.value.detail
    assert len(caught.value.detail) < 3000
    assert max(map(len, steps)) < 100


def test_literals_keep_the_ends_of_their_lines(tmp_path: Path, url: str) -> None:
    (tmp_path / "a.sql").write_bytes(
        b"\xef\xbb\xbfCREATE TABLE t (a text);\r\nINSERT INTO t VALUES"
        b" ('a\r\nb\rc\n');\r\nCOPY t FROM stdin;\r\nd\r\n\\.\r\n"
    )
    schema(tmp_path, "a.sql").build(url, quiet)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT a FROM t ORDER BY a").fetchall() == [
            ("a\r\nb\rc\n",),
            ("d",),
        ]


def test_a_manifest_changes_with_content_and_order_and_with_nothing_else(tmp_path: Path) -> None:
    """P5."""
    for name in ("a.sql", "b.sql"):
        (tmp_path / name).write_text(f"-- {name}")
    first = Manifest(schema(tmp_path, "a.sql", "b.sql").manifest())
    (tmp_path / "a.sql").touch()
    assert Manifest(schema(tmp_path, "a.sql", "b.sql").manifest()).fingerprint == first.fingerprint
    assert Manifest(schema(tmp_path, "b.sql", "a.sql").manifest()).fingerprint != first.fingerprint
    (tmp_path / "a.sql").write_text("-- changed")
    second = Manifest(schema(tmp_path, "a.sql", "b.sql").manifest())
    assert second.explain(first) == ["file a.sql changed"]
    assert Manifest(schema(tmp_path, "a.sql").manifest()).explain(first) == [
        "file a.sql changed", "file b.sql is gone", "order of SQL files is gone",
    ]  # fmt: skip


def test_a_command_runs_without_a_shell_with_the_url_in_its_environment(
    tmp_path: Path, url: str
) -> None:
    (tmp_path / "make.py").write_text(
        "import os, sys, psycopg\n"
        "with psycopg.connect(os.environ['DATABASE_URL']) as c: c.execute('CREATE TABLE made ()')\n"
        "assert os.environ['PGDATABASE'] in os.environ['DATABASE_URL']\nassert sys.argv[1:]"
        " == ['$(touch PWNED)', 'a b']\n"
    )
    made = schema(tmp_path, f"{sys.executable} make.py '$(touch PWNED)' 'a b'")
    assert [name for name in made.manifest() if name.startswith("file ")] == ["file make.py"]
    made.build(url, quiet)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM made").fetchone() == (0,)
    assert not (tmp_path / "PWNED").exists()


ELSEWHERE = {
    "PGHOST": "/nowhere",
    "PGHOSTADDR": "127.0.0.1",
    "PGPORT": "1",
    "PGDATABASE": "postgres",
    "PGUSER": "nobody",
    "PGSERVICE": "elsewhere",
    "PGOPTIONS": "-c default_transaction_read_only=on",
}
REACHES = """
import os, psycopg
for number, target in enumerate(("", os.environ["DATABASE_URL"])):
    with psycopg.connect(target) as c: c.execute(("CREATE TABLE made_%d ()" % number).encode())
"""


@pytest.mark.parametrize(
    "names", [[name] for name in ELSEWHERE] + [list(ELSEWHERE)], ids=lambda names: "+".join(names)
)
def test_a_command_reaches_its_database_whatever_the_environment_says(
    tmp_path: Path, url: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S24: by libpq's variables alone, and by the URL."""
    (tmp_path / "services").write_text(
        "[elsewhere]\nhost=/nowhere\nport=1\nuser=nobody\ndbname=postgres\n"
    )
    (tmp_path / "reaches.py").write_text(REACHES)
    with monkeypatch.context() as patch:
        patch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        for name in names:
            patch.setenv(name, ELSEWHERE[name])
        schema(tmp_path, f"{sys.executable} reaches.py", inputs=[]).build(url, quiet)
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT relname FROM pg_class WHERE relname LIKE 'made%' ORDER BY 1"
        ).fetchall()
    assert found == [("made_0",), ("made_1",)], "one of the two went elsewhere"


def test_a_command_reaches_its_database_on_a_server_that_a_service_names(
    tmp_path: Path, server: Server, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's database wins over PGDATABASE, but its other parameters are needed."""
    made = f"made_{uuid.uuid4().hex[:8]}"
    dsn = server.dsn.replace(
        dbname="postgres", password="s3cr3t", application_name="of the service"
    )
    (tmp_path / "services").write_text(
        "[s]\n" + "".join(f"{key}={value}\n" for key, value in dsn.params)
    )
    (tmp_path / "reaches.py").write_text(
        f"{REACHES}assert (os.environ['PGPASSWORD'], os.environ['PGAPPNAME']) == ('s3cr3t',"
        f" 'of the service')\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "s")
    settings = load(
        tmp_path, {**options, "schema": [f"{sys.executable} reaches.py"], "inputs": []}, {}
    )
    name = psycopg.sql.Identifier(made)
    with Server.open(settings) as opened:
        opened.connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(name))
        try:
            handles.load(settings)[0].build(opened.database(made).url, quiet)
            with opened.connect(made, "test") as connection:
                assert connection.execute(
                    "SELECT count(*) FROM pg_class WHERE relname LIKE 'made%'"
                ).fetchone() == (2,)
        finally:
            opened.connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def test_a_failing_command_shows_what_it_printed_but_no_password(tmp_path: Path, url: str) -> None:
    (tmp_path / "fail.py").write_text(
        "import os, sys\nprint('connecting to', os.environ['DATABASE_URL'])\nsys.exit('boom')\n"
    )
    with pytest.raises(BuildFailed) as caught:
        schema(tmp_path, f"{sys.executable} fail.py").build(url, quiet)
    assert "exit status 1" in caught.value.message
    assert "boom" in caught.value.detail
    assert "connecting to postgresql://" in caught.value.detail
    assert "s3cr3t" not in str(caught.value)


def test_alembic_depends_on_its_ini_and_its_scripts(tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "versions" / "0001.py").write_text("")
    assert {"file alembic.ini", "file migrations/versions/0001.py"} <= set(
        schema(tmp_path, "alembic upgrade head").manifest()
    )


def test_a_command_whose_inputs_cannot_be_told_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot tell which files"):
        schema(tmp_path, "make database").manifest()
    assert set(schema(tmp_path, "make database", inputs=[]).manifest()) == {"command make database"}
    with pytest.raises(SettingsError, match="no file matches 'x/\\*'"):
        schema(tmp_path, "make database", inputs=["x/*"]).manifest()


def test_a_callable_gets_the_url_depends_on_its_package_and_shows_where_it_failed(
    tmp_path: Path, url: str
) -> None:
    name = f"package_{uuid.uuid4().hex[:8]}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "other.py").write_text("X = 1\n")
    (tmp_path / name / "build.py").write_text(
        "import psycopg\ndef make(url):\n    with psycopg.connect(url) as c:"
        " c.execute('CREATE TABLE made ()')\n"
        "def without(): pass\ndef fails(url):\n    raise ValueError('bad ' + url)\n"
    )
    made = schema(tmp_path, f"{name}.build:make")
    assert {f"file {name}/{file}.py" for file in ("__init__", "other", "build")} <= set(
        made.manifest()
    )
    made.build(url, quiet)
    schema(tmp_path, f"{name}.build:without").build(url, quiet)
    with pytest.raises(BuildFailed) as caught:
        schema(tmp_path, f"{name}.build:fails").build(url, quiet)
    assert "ValueError: bad postgresql://" in caught.value.message
    assert "build.py:6 in fails" in caught.value.detail
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None  # it would show the password
    narrow = schema(tmp_path, f"{name}.build:make", inputs=[f"{name}/other.py"]).manifest()
    assert {key for key in narrow if key.startswith("file ")} == {
        f"file {name}/build.py",
        f"file {name}/other.py",
    }


def test_nothing_to_build_and_what_is_no_schema_are_errors(tmp_path: Path) -> None:
    (tmp_path / "sample_object.py").write_text("X = 3\n")
    with pytest.raises(SettingsError, match="nothing says what goes into the template"):
        handles.load(load(tmp_path, {}, {}))
    with pytest.raises(SettingsError, match="'int', which is not a schema"):
        schema(tmp_path, "sample_object:X")
    with pytest.raises(SettingsError, match="it cannot be called"):
        schema(tmp_path, "true", inputs=[], seed="sample_object:X")
    with pytest.raises(SettingsError, match="is not a database handle"):
        schema(tmp_path, "true", inputs=[], bind="sample_object:X")
