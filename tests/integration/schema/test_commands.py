"""Commands that lead elsewhere: each variable that names a database names the build, and what made
nothing there is no template."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbclone.schema.environment import place_in_form, program_environment
from dbclone.server.dsn import Dsn, parse
from dbclone.server.server import Server
from dbclone.settings import load

from ...conftest import Project
from ..devdb import Developer, developer


@pytest.fixture
def dev(server: Server) -> Iterator[Developer]:
    with developer(server) as found:
        yield found


BUILD = parse("postgresql://builder:b%40d@build.example:5433/built")
SOCKET = parse("postgresql://builder@/built?host=/run/build&port=5433")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "ANYTHING",
            "postgres://dev:secret@localhost/devdb",
            "postgres://builder:b%40d@build.example:5433/built",
        ),
        (
            "X",
            "postgresql+asyncpg://dev:secret@localhost/devdb",
            "postgresql+asyncpg://builder:b%40d@build.example:5433/built",
        ),
        (
            "X",
            "postgis://dev:secret@localhost/devdb",
            "postgis://builder:b%40d@build.example:5433/built",
        ),
        (
            "X",
            "jdbc:postgresql://localhost/devdb",
            "jdbc:postgresql://build.example:5433/built?user=builder&password=b%40d",
        ),
        (
            "GOOSE_DBSTRING",
            "host=localhost dbname=devdb",
            "user=builder password=b@d dbname=built host=build.example port=5433",
        ),
        ("DB_HOST", "localhost", "build.example"),
        ("POSTGRES_PORT", "5432", "5433"),
        ("APP_POSTGRES_DB", "devdb", "built"),
        ("RDS_DB_NAME", "devdb", "built"),
        ("DATABASE_USERNAME", "dev", "builder"),
        ("DJANGO_DB_PASSWORD", "secret", "b@d"),
        ("MYSQL_DB_HOST", "localhost", None),
        ("REDIS_URL", "redis://localhost/0", None),
        ("POSTGRES_HOST_AUTH_METHOD", "trust", None),
        ("LANG", "C", None),
    ],
)
def test_what_names_a_database_gets_the_build_in_its_own_form(
    name: str, value: str, expected: str | None
) -> None:
    found = place_in_form(name, value, BUILD)
    if "dbname=" in value:
        assert found is not None
        assert expected is not None
        assert set(found.split()) == set(expected.split())
    else:
        assert found == expected


def test_what_knows_no_sockets_leads_to_no_database_and_a_part_that_is_not_there_is_empty() -> None:
    assert (
        place_in_form("X", "jdbc:postgresql://localhost/devdb", SOCKET)
        == "jdbc:postgresql:///built?user=builder"
    )
    assert place_in_form("DB_PASSWORD", "secret", SOCKET) == ""
    assert place_in_form("DB_HOST", "localhost", SOCKET) == "/run/build"


def test_names_in_an_env_file_are_set_and_no_other_value_of_it_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        "# a comment\nexport"
        " APP_DSN='postgresql+psycopg://dev:secret@localhost/devdb'\nDB_NAME=devdb\nDB_PASSWORD=secret\n"
        "API_KEY=0123\nDATABASE_URL=postgresql+asyncpg://dev:secret@localhost/devdb\n"
    )
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    (tmp_path / "services").write_text("[elsewhere]\nhost=localhost\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("OTHER_URL", "postgres://dev:secret@localhost/other")
    with program_environment(load(tmp_path, {}, {}), BUILD) as environ:
        assert environ["APP_DSN"] == "postgresql+psycopg://builder:b%40d@build.example:5433/built"
        assert (
            environ["DATABASE_URL"] == "postgresql+asyncpg://builder:b%40d@build.example:5433/built"
        )
        assert (environ["DB_NAME"], environ["DB_PASSWORD"], environ["PGDATABASE"]) == (
            "built",
            "b@d",
            "built",
        )
        assert environ["OTHER_URL"] == "postgres://builder:b%40d@build.example:5433/built"
        assert "API_KEY" not in environ
        assert "PGSERVICE" not in environ
        assert not any("secret" in value or "devdb" in value for value in environ.values())
        for name in ("PGSERVICEFILE", "PGPASSFILE"):
            assert not os.path.exists(environ[name])


def test_of_a_file_of_passwords_a_program_gets_the_line_for_its_database_alone(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server that asks for none, it gets none."""
    (tmp_path / "passwords").write_text("*:*:devdb:*:d3vel0per\n*:*:*:*:s3:cr3t\n")
    (tmp_path / "passwords").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "passwords"))
    dsn: Dsn = server.database("postgres")
    with program_environment(load(tmp_path, {}, {}), dsn) as environ:
        found = Path(environ["PGPASSFILE"])
        assert found != tmp_path / "passwords"
        assert found.read_text() == f"*:*:postgres:{dsn.get('user') or '*'}:s3\n"
        assert found.stat().st_mode & 0o077 == 0
    assert not found.exists()


LEADS_AWAY = {
    "a script with a URL in it": ("python build.py", "build.py"),
    "a script of a shell": ("sh -c 'sh migrate.sh && true'", ".env"),
    "an ini file": ("python tool.py yoyo.ini", "yoyo.ini"),
    "words in YAML": ("python tool.py database.yml", "database.yml"),
}


@pytest.mark.parametrize("kind", LEADS_AWAY)
def test_a_command_that_builds_elsewhere_makes_no_template_and_is_told_where_it_went(
    project: Project, server: Server, dev: Developer, kind: str
) -> None:
    """It can write where it likes, so that what it wrote is there; but no test runs on an empty
    database."""
    line, file = LEADS_AWAY[kind]
    project.configure(schema=line, bind=None, inputs=["*.py"])
    project.write(
        build=f"""
        import psycopg
        psycopg.connect({dev.url()!r}, autocommit=True).execute("CREATE TABLE IF NOT EXISTS led_away ()")
        """,
        tool="""
        import os, psycopg, re, sys
        text = open(sys.argv[1]).read()
        url = re.search(r"postgresql:\\S+", text)
        place = url[0] if url else "dbname=" + re.search("database: (.*)", text)[1]
        psycopg.connect(place, autocommit=True).execute("CREATE TABLE IF NOT EXISTS led_away ()")
        """,
        test_a="def test_a(dbclone):\n    dbclone.execute('SELECT FROM led_away')\n",
    )
    (project.folder / ".env").write_text(f'PLACE="{dev.url()}"\n' if file == ".env" else "")
    # Which takes its own file for true, as `set -a; . .env` does.
    (project.folder / "migrate.sh").write_text(". ./.env\nPLACE=$PLACE python build.py\n")
    (project.folder / "yoyo.ini").write_text(
        f"[DEFAULT]\ndatabase = {dev.url()}\n" if file == "yoyo.ini" else ""
    )
    (project.folder / "database.yml").write_text(
        f"development:\n  adapter: postgresql\n  database: {dev.name}\n" if ".yml" in file else ""
    )
    for command in (("dbclone", "prepare"), ("pytest", "-p", "no:cacheprovider")):
        done = project.run(*command)
        text = " ".join((done.stdout + done.stderr).split())
        assert done.returncode != 0
        assert (
            f"`{line}` made nothing in the database it was given; its {file} names another" in text
        ), text
        assert f'{file} names database "{dev.name}"' in text
        assert "DATABASE_URL" in text
        assert "d3vel0per" not in text
        assert project.databases(server) == []


def test_a_command_reads_the_build_wherever_it_looks(
    project: Project, server: Server, dev: Developer
) -> None:
    """Variables, a .env file loaded as dotenv does, a service that the environment names."""
    project.configure(schema="python build.py", bind=None)
    (project.folder / ".env").write_text(
        f"APP_DB={dev.url('+psycopg')}\nPOSTGRES_DB={dev.name}\nPGSERVICE=dev\n"
    )
    (project.folder / "services").write_text(
        "[dev]\n" + "".join(f"{key}={value}\n" for key, value in dev.dsn.params)
    )
    project.write(
        build="""
        import os, psycopg
        for line in open(".env"):
            name, _, value = line.strip().partition("=")
            if name != "PGSERVICE":
                os.environ.setdefault(name, value)
        places = [os.environ["APP_DB"].replace("+psycopg", ""), os.environ["LEGACY"], "dbname=" + os.environ["POSTGRES_DB"], ""]
        for number, place in enumerate(places):
            with psycopg.connect(place) as connection:
                connection.execute(f"CREATE TABLE t{number} ()")
        """,
        test_a="def test_a(dbclone):\n    dbclone.execute('SELECT FROM t0, t1, t2, t3')\n",
    )
    done = project.pytest(LEGACY=dev.url(), PGSERVICEFILE=str(project.folder / "services"))
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    dev.untouched()


def test_a_callable_that_makes_nothing_is_no_template_either(
    project: Project, server: Server, dev: Developer
) -> None:
    project.configure(schema="build:make", bind=None)
    project.write(
        build=f"import psycopg\ndef make(url):\n    psycopg.connect({dev.url()!r}).close()\n"
    )
    done = project.run("dbclone", "prepare")
    assert done.returncode == 1
    assert "schema build:make made nothing in the database it was given" in done.stderr
    assert "Let it use the URL that it is called with" in done.stderr
    assert project.databases(server) == []
    dev.untouched()


def test_who_means_an_empty_database_says_so_in_a_file(project: Project, server: Server) -> None:
    project.configure(schema="nothing.sql", bind=None)
    (project.folder / "nothing.sql").write_text("-- the tests make all that they need\n")
    assert project.run("dbclone", "prepare").returncode == 0


@pytest.mark.parametrize(
    "statement",
    ["CREATE SCHEMA s", "CREATE TYPE e AS ENUM ('a')", "CREATE FUNCTION f() RETURNS int" " LANGUAGE sql AS 'SELECT 1'",
     "CREATE SEQUENCE s", "CREATE CAST (int AS macaddr) WITH INOUT", "SELECT lo_create(0)", "CREATE PUBLICATION p"],
)  # fmt: skip
def test_anything_is_something(project: Project, server: Server, statement: str) -> None:
    project.configure(schema="python build.py", bind=None)
    project.write(
        build=f"import os, psycopg\npsycopg.connect(os.environ['DATABASE_URL'],"
        f" autocommit=True).execute({statement!r})\n"
    )
    done = project.run("dbclone", "prepare")
    assert done.returncode == 0, done.stderr
