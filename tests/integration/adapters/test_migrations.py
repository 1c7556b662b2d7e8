"""Alembic, Django and Flask-Migrate: whatever database their files name, the one being built is
migrated and no other reached."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dbclone.adapters import handles
from dbclone.adapters.migrations.source import Tool, tool
from dbclone.errors import BuildFailed, Error, SettingsError
from dbclone.schema.manifest import Manifest
from dbclone.schema.sources import Command, Schema
from dbclone.server.server import Server
from dbclone.settings import load

from ...conftest import Project
from ..devdb import Developer, developer


@pytest.fixture
def dev(server: Server) -> Iterator[Developer]:
    with developer(server) as found:
        yield found
        found.untouched()


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """An empty database, with a password that each form of a URL has to write otherwise."""
    name = sql.Identifier(f"dbclone_empty_{uuid.uuid4().hex[:8]}")
    server.connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    yield server.database(name._obj[0]).replace(password="s3%40@/:cr3t").url
    server.connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def quiet(text: str) -> None:
    pass


def schema(folder: Path, spec: str, **options: object) -> Schema:
    return handles.load(load(folder, {"schema": [spec], **options}, {}))[0]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 AND"
            " relnamespace = 2200"
        )
        return {name for (name,) in rows}


def revision(name: str, table: str, down: str | None = None, body: str = "") -> str:
    return (
        f"from alembic import op\nimport sqlalchemy as sa\nrevision = {name!r}\ndown_revision"
        f" = {down!r}\n"
        f"def upgrade():\n    op.create_table({table!r}, sa.Column('id', sa.Integer,"
        f" primary_key=True))\n" + textwrap.indent(body, "    ") + "def downgrade(): pass\n"
    )


RUN = """
from alembic import context

def run(connection):
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()
"""
FROM_CONFIG = f"""{RUN}
from sqlalchemy import engine_from_config, pool
section = context.config.get_section(context.config.config_ini_section)
with engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool).connect() as connection:
    run(connection)
"""
ENGINE = f"""{RUN}
from sqlalchemy import create_engine
with create_engine(URL).connect() as connection:
    run(connection)
"""
ASYNC = f"""{RUN}
import asyncio
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

async def main():
    section = context.config.get_section(context.config.config_ini_section)
    engine = async_engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
    await engine.dispose()

asyncio.run(main())
"""
# What env.py is, and which driver alembic.ini names (None: the placeholder that `alembic init`
# writes).
ENVIRONMENTS: dict[str, tuple[str, str | None]] = {
    "as alembic init writes it": (FROM_CONFIG, "+psycopg"),
    "psycopg2": (FROM_CONFIG, "+psycopg2"),
    "no driver named": (FROM_CONFIG, ""),
    "a placeholder in the ini": (FROM_CONFIG, None),
    "an option of the ini": (f"URL = __import__('alembic').context.config.get_main_option('sqlalchemy.url')\n{ENGINE}", "+psycopg"),
    "a URL in the code": (f"URL = 'DEV'\n{ENGINE}", "+psycopg"),
    "a URL in the code over psycopg2": (f"URL = 'DEV'.replace('+psycopg'," f" '+psycopg2')\n{ENGINE}", "+psycopg"),
    "the environment at import": (
        f"import os\nURL = os.environ['DATABASE_URL'].replace('postgresql:'," f" 'postgresql+psycopg:')\n{ENGINE}", None,
    ),
    "a .env file that overrides": (
        f"import os\nos.environ['DATABASE_URL'] = 'DEV'\nURL =" f" os.environ['DATABASE_URL']\n{ENGINE}", None,
    ),
    "an ini read by hand": (
        f"import configparser\nparser =" f" configparser.RawConfigParser()\nparser.read('alembic.ini')\n"
        f"URL = parser.get('alembic', 'sqlalchemy.url')\n{ENGINE}",
        "+psycopg",
    ),
    "asyncpg": (ASYNC, "+asyncpg"),
    "asynchronous psycopg": (ASYNC, "+psycopg"),
    "listeners of its own": (
        f"from sqlalchemy import Engine, event\n"
        f"event.listen(Engine, 'do_connect', lambda dialect, record, a, kw:" f" kw.update(password='token'))\nURL = 'DEV'\n{ENGINE}",
        "+psycopg",
    ),
}  # fmt: skip


def alembic(folder: Path, dev: Developer, env: str, driver: str | None = "+psycopg") -> None:
    place = (
        "driver://user:pass@localhost/dbname"
        if driver is None
        else dev.url(driver).replace("%", "%%")
    )
    write(
        folder,
        {
            "alembic.ini": f"[alembic]\nscript_location = migrations\nsqlalchemy.url = {place}\n",
            "migrations/env.py": env.replace("DEV", dev.url("+psycopg")),
            "migrations/versions/a1.py": revision("a1", "users"),
        },
    )


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_no_environment_of_alembic_leads_away(
    tmp_path: Path, dev: Developer, url: str, kind: str
) -> None:
    alembic(tmp_path, dev, *ENVIRONMENTS[kind])
    schema(tmp_path, "alembic").build(url, quiet)
    assert tables(url) == {"users", "alembic_version"}


RAW = 'a connection of {} would connect to database "NAME"'
LOOP = "import asyncio, asyncpg, psycopg\n"
REFUSED = {
    "a creator": (
        f"import psycopg\nfrom sqlalchemy import create_engine\n{RUN}\n"
        "with create_engine('postgresql+psycopg://', creator=lambda:"
        " psycopg.connect('RAW')).connect() as c: run(c)\n",
        RAW.format("psycopg"),
    ),
    "a connection of psycopg2": (
        "import psycopg2\npsycopg2.connect('RAW')\n",
        RAW.format("psycopg2"),
    ),
    "parameters of psycopg2": (
        "import psycopg2\npsycopg2.connect(database='NAME')\n",
        RAW.format("psycopg2"),
    ),
    "a connection of psycopg": (
        "import psycopg\npsycopg.Connection.connect(dbname='NAME')\n",
        RAW.format("psycopg"),
    ),
    "an asynchronous one": (
        f"{LOOP}asyncio.run(psycopg.AsyncConnection.connect('RAW'))\n",
        RAW.format("psycopg"),
    ),
    "a connection of asyncpg": (
        f"{LOOP}asyncio.run(asyncpg.connect('RAW'))\n",
        RAW.format("asyncpg"),
    ),
    "a pool of asyncpg": (
        f"{LOOP}async def main():\n    async with asyncpg.create_pool('RAW', min_size=1):"
        f" pass\nasyncio.run(main())\n",
        RAW.format("asyncpg"),
    ),
    "two databases": (
        f"from sqlalchemy import create_engine\n{RUN}\nfor place in ('DEV',"
        f" 'DEV'.replace('/dev', '/other_dev')):\n"
        "    with create_engine(place).connect() as c: run(c)\n",
        'a second engine would connect to database "other_NAME"',
    ),
    "another kind of database": (
        f"from sqlalchemy import create_engine\n{RUN}\nwith"
        f" create_engine('sqlite:///app.db').connect() as c: run(c)\n",
        "an engine for sqlite would connect to",
    ),
    "a listener that connects": (
        "import psycopg\nfrom sqlalchemy import Engine, create_engine, event\n"
        "event.listen(Engine, 'do_connect', lambda *a:"
        " psycopg.connect('RAW'))\ncreate_engine('DEV').connect()\n",
        RAW.format("psycopg"),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_led_is_refused_by_its_name_before_it_connects(
    tmp_path: Path, dev: Developer, url: str, kind: str
) -> None:
    env, said = (text.replace("RAW", dev.url()).replace("NAME", dev.name) for text in REFUSED[kind])
    alembic(tmp_path, dev, env)
    with pytest.raises(BuildFailed) as caught:
        schema(tmp_path, "alembic").build(url, quiet)
    assert said in caught.value.message
    assert "not the one being built" in caught.value.message
    assert "d3vel0per" not in str(caught.value)
    assert "s3" not in str(caught.value)
    assert not (tmp_path / "app.db").exists()


def test_a_migration_that_connects_elsewhere_by_itself_is_refused(
    tmp_path: Path, dev: Developer, url: str
) -> None:
    alembic(tmp_path, dev, FROM_CONFIG)
    body = f"import psycopg\npsycopg.connect({dev.url()!r}, autocommit=True).execute('DROP TABLE customer')\n"
    write(tmp_path, {"migrations/versions/a2.py": revision("a2", "more", "a1", body)})
    with pytest.raises(
        BuildFailed, match=f'a connection of psycopg would connect to database "{dev.name}"'
    ):
        schema(tmp_path, "alembic upgrade head").build(url, quiet)


def test_several_heads_folders_of_versions_and_a_path_of_imports(
    tmp_path: Path, dev: Developer, url: str
) -> None:
    alembic(tmp_path, dev, f"from own.names import NAME\nassert NAME == 'n'\n{FROM_CONFIG}")
    write(
        tmp_path,
        {
            "alembic.ini": "[alembic]\nscript_location ="
            " %(here)s/migrations\nprepend_sys_path = lib\n"
            "version_locations = %(here)s/migrations/versions %(here)s/more\n"
            f"sqlalchemy.url = {dev.url('+psycopg').replace('%', '%%')}\n",
            "more/b1.py": revision("b1", "orders"),
            "lib/own/names.py": "NAME = 'n'\n",
        },
    )
    found = schema(tmp_path, "alembic")
    assert {
        "file alembic.ini",
        "file migrations/env.py",
        "file migrations/versions/a1.py",
        "file more/b1.py",
    } <= set(found.manifest())
    found.build(url, quiet)
    assert tables(url) == {"users", "orders", "alembic_version"}
    with pytest.raises(BuildFailed, match="Multiple head revisions"):
        schema(tmp_path, "alembic upgrade head").build(url, quiet)
    schema(tmp_path, "python -m alembic -c alembic.ini upgrade heads").build(url, quiet)


def test_an_ini_in_a_folder_of_its_own_and_another_section(
    tmp_path: Path, dev: Developer, url: str
) -> None:
    """A folder called alembic in the project is not the library."""
    alembic(tmp_path / "backend", dev, FROM_CONFIG)
    (tmp_path / "backend" / "migrations").rename(tmp_path / "backend" / "alembic")
    (tmp_path / "backend" / "alembic" / "__init__.py").write_text("")
    (tmp_path / "alembic").mkdir()
    (tmp_path / "alembic" / "__init__.py").write_text(
        "raise RuntimeError('a folder of the project')\n"
    )
    text = (
        (tmp_path / "backend" / "alembic.ini")
        .read_text()
        .replace("migrations", "alembic")
        .replace("[alembic]", "[tests]")
    )
    (tmp_path / "backend" / "alembic.ini").write_text(
        f"[alembic]\nscript_location = nowhere\n{text}"
    )
    with pytest.raises(SettingsError, match="names nowhere, which is no folder"):
        schema(tmp_path, "alembic:backend/alembic.ini").manifest()
    (tmp_path / "backend" / "alembic.ini").write_text(text.replace("[tests]", "[alembic]"))
    found = schema(tmp_path, "alembic:backend/alembic.ini")
    assert "file backend/alembic/versions/a1.py" in found.manifest()
    found.build(url, quiet)
    assert tables(url) == {"users", "alembic_version"}
    (tmp_path / "backend" / "alembic.ini").write_text(text)
    schema(tmp_path, "alembic -n tests -c backend/alembic.ini upgrade head").manifest()


def test_configuration_in_pyproject(tmp_path: Path, dev: Developer, url: str) -> None:
    alembic(tmp_path, dev, ENVIRONMENTS["a URL in the code"][0])
    (tmp_path / "alembic.ini").unlink()
    write(
        tmp_path,
        {
            "pyproject.toml": '[tool.alembic]\nscript_location = "%(here)s/migrations"\n'
            'version_locations = ["%(here)s/migrations/versions", "%(here)s/more"]\n',
            "more/b1.py": revision("b1", "orders"),
        },
    )
    found = schema(tmp_path, "alembic")
    assert {"file pyproject.toml", "file migrations/versions/a1.py", "file more/b1.py"} <= set(
        found.manifest()
    )
    found.build(url, quiet)
    assert tables(url) == {"users", "orders", "alembic_version"}


def test_a_changed_migration_is_seen_whatever_inputs_says(tmp_path: Path, dev: Developer) -> None:
    alembic(tmp_path, dev, FROM_CONFIG)
    write(tmp_path, {"fill.py": "", "migrations/__pycache__/env.pyc": ""})
    before = Manifest(schema(tmp_path, "alembic", inputs=["fill.py"]).manifest())
    assert {key for key in before if key.startswith("file ")} == {
        "file fill.py", "file alembic.ini", "file migrations/env.py", "file migrations/versions/a1.py",
    }  # fmt: skip
    write(
        tmp_path,
        {
            "migrations/versions/a1.py": revision("a1", "people"),
            "migrations/versions/a2.py": revision("a2", "b", "a1"),
        },
    )
    after = Manifest(schema(tmp_path, "alembic", inputs=["fill.py"]).manifest())
    assert after.explain(before) == [
        "file migrations/versions/a1.py changed",
        "file migrations/versions/a2.py is new",
    ]


def test_what_a_migration_raises_is_said_with_its_line(
    tmp_path: Path, dev: Developer, url: str
) -> None:
    alembic(tmp_path, dev, FROM_CONFIG)
    write(
        tmp_path,
        {
            "migrations/versions/a2.py": revision(
                "a2", "more", "a1", "print('half way')\nraise ValueError('no ' + 'luck')\n"
            )
        },
    )
    with pytest.raises(BuildFailed, match="alembic raised ValueError: no luck") as caught:
        schema(tmp_path, "alembic").build(url, quiet)
    assert "a2.py:8 in upgrade: raise ValueError" in caught.value.detail
    assert "half way" in caught.value.detail
    alembic(tmp_path, dev, "import os\nos._exit(7)\n")
    with pytest.raises(BuildFailed, match="ended with exit status 7"):
        schema(tmp_path, "alembic").build(url, quiet)
    alembic(tmp_path, dev, "import sys\nsys.exit('boom')\n")
    with pytest.raises(BuildFailed, match="raised SystemExit: boom"):
        schema(tmp_path, "alembic").build(url, quiet)


def test_what_is_not_there_is_named(
    tmp_path: Path, dev: Developer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = {
        "alembic": "there is no alembic.ini",
        "alembic:x/y.ini": "there is no x/y.ini",
        "manage.py migrate": "there is no manage.py",
        "flask db upgrade": "names migrations, which is no folder",
    }
    for spec, named in problems.items():
        with pytest.raises(SettingsError, match=named):
            schema(tmp_path, spec).manifest()
    alembic(tmp_path, dev, FROM_CONFIG)
    write(
        tmp_path,
        {
            "missing/alembic.py": 'raise ModuleNotFoundError("No module named'
            " 'alembic'\", name='alembic')\n"
        },
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "missing"))
    with pytest.raises(SettingsError, match="there is no module 'alembic'") as caught:
        schema(tmp_path, "alembic").build(url, quiet)
    assert caught.value.hint == "Run: pip install alembic"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("alembic", Tool("alembic", ("upgrade", "heads"))),
        ("alembic:db/alembic.ini", Tool("alembic", ("-c", "db/alembic.ini", "upgrade", "heads"))),
        ("alembic upgrade head", Tool("alembic", ("upgrade", "head"))),
        ("uv run alembic -x a=b upgrade head", Tool("alembic", ("-x", "a=b", "upgrade", "head"))),
        (
            "python3 -m alembic --config=x.ini upgrade heads",
            Tool("alembic", ("--config=x.ini", "upgrade", "heads")),
        ),
        ("python manage.py migrate", Tool("django", ("migrate",), "manage.py")),
        (
            "src/manage.py migrate shop --noinput",
            Tool("django", ("migrate", "shop", "--noinput"), "src/manage.py"),
        ),
        ("flask --app x db upgrade", Tool("flask", ("--app", "x", "db", "upgrade"))),
        ("alembic upgrade head --sql", None),
        ("alembic stamp head", None),
        ("/opt/other/bin/python manage.py migrate", None),
        ("python manage.py loaddata x", None),
        ("sh -c 'alembic upgrade head'", None),
        ("make 'unclosed", None),
    ],
)
def test_what_is_known_by_name(spec: str, expected: Tool | None) -> None:
    assert tool(spec) == expected


def test_what_is_not_known_is_a_command_as_before(tmp_path: Path) -> None:
    assert isinstance(schema(tmp_path, "sh -c 'alembic history'", inputs=[]), Command)
    with pytest.raises(SettingsError, match="'alembic upgrade head' is hidden") as caught:
        schema(tmp_path, "sh -c 'alembic upgrade head'", inputs=[])
    assert "can do so only if it runs it itself" in caught.value.detail


SETTINGS = """
import os
SECRET_KEY = "x"
INSTALLED_APPS = ["shop", "django.contrib.contenttypes"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
DEV = {{"ENGINE": "django.db.backends.postgresql", "NAME": "{name}", "HOST": "{host}", "PORT": "{port}", "USER": "{user}"}}
{databases}
"""
DATABASES = {
    "in the code": "DATABASES = {'default': DEV}",
    "with options that win": "DATABASES = {'default': {**DEV, 'OPTIONS': {'dbname':"
    " DEV['NAME'], 'passfile': 'x'}}}",
    "a service": "DATABASES = {'default': {'ENGINE': DEV['ENGINE'], 'OPTIONS': {'service': 'dev',"
    " 'options': '-c work_mem=8MB'}}}",
    "by the environment": "DATABASES = {'default': {**DEV, 'NAME': os.environ['DB_NAME'], 'HOST':"
    " os.environ['DB_HOST']}}",
    "a pool": "DATABASES = {'default': {**DEV, 'OPTIONS': {'pool': True}}}",
}
MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "site_.settings"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
MIGRATION = """
from django.conf import settings
from django.db import migrations, models

def check(apps, schema_editor):
    # What a migration reads in the settings is where it is.
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        assert cursor.fetchone() == (settings.DATABASES["default"]["NAME"],)
    {body}

class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(name="Item", fields=[("id", models.AutoField(primary_key=True, serialize=False))]),
        migrations.RunPython(check, migrations.RunPython.noop),
    ]
"""


def django(folder: Path, dev: Developer, databases: str, body: str = "pass") -> None:
    parts = {key: dev.dsn.get(key) for key in ("host", "port", "user")}
    write(
        folder,
        {
            "manage.py": MANAGE,
            "site_/__init__.py": "",
            "site_/settings.py": SETTINGS.format(name=dev.name, databases=databases, **parts),
            "shop/__init__.py": "",
            "shop/models.py": "from django.db import models\nclass Item(models.Model): id ="
            " models.AutoField(primary_key=True)\n",
            "shop/migrations/__init__.py": "",
            "shop/migrations/0001_initial.py": MIGRATION.format(body=body),
            ".env": f"DB_NAME={dev.name}\nDB_HOST={dev.dsn.get('host')}\n",
        },
    )


@pytest.mark.parametrize("kind", DATABASES)
def test_no_settings_of_django_lead_away(
    tmp_path: Path, dev: Developer, url: str, kind: str
) -> None:
    django(tmp_path, dev, DATABASES[kind])
    schema(tmp_path, "python manage.py migrate").build(url, quiet)
    assert {"shop_item", "django_migrations", "django_content_type"} <= tables(url)


TWO = "DATABASES = {'default': DEV, 'reports': DEV, 'files': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'files.db'}}"


OTHER = "from django.db import connections; connections['{}'].cursor()"
FILE = "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'files.db'}}"


@pytest.mark.parametrize(
    ("databases", "body", "said"),
    [
        (TWO, OTHER.format("reports"), "the alias 'reports' of Django's DATABASES would connect"),
        (TWO, OTHER.format("files"), "the alias 'files' of sqlite of Django's DATABASES would"),
        (
            TWO,
            "import psycopg; psycopg.connect(dbname='NAME')",
            "a connection of psycopg would connect",
        ),
        (FILE, "pass", "the alias 'default' of sqlite"),
    ],
    ids=["another database", "a file", "a connection of its own", "default is a file"],
)
def test_what_django_would_reach_beside_default_is_refused(
    tmp_path: Path, dev: Developer, url: str, databases: str, body: str, said: str
) -> None:
    django(tmp_path, dev, databases, body.replace("NAME", dev.name))
    with pytest.raises(BuildFailed) as caught:
        schema(tmp_path, "manage.py migrate").build(url, quiet)
    assert said in caught.value.message
    assert not (tmp_path / "files.db").exists()


def test_django_depends_on_its_settings_and_the_migrations_of_the_project(
    tmp_path: Path, dev: Developer
) -> None:
    """Not on what is installed, nor on the other files of an application."""
    django(tmp_path / "src", dev, DATABASES["in the code"])
    write(
        tmp_path / "src",
        {
            "venv/pyvenv.cfg": "",
            "venv/x/migrations/__init__.py": "",
            "shop/settings/base.py": "",
            "shop/migrations/data.sql": "",
        },
    )
    found = schema(tmp_path, "python src/manage.py migrate").manifest()
    assert {key.partition("src/")[2] for key in found if key.startswith("file ")} == {
        "manage.py", "site_/settings.py", "shop/settings/base.py", "shop/migrations/__init__.py", "shop/migrations/0001_initial.py",
        "shop/migrations/data.sql",
    }  # fmt: skip


def test_flask_migrate_runs_the_application_and_cannot_lead_away(
    tmp_path: Path, dev: Developer, url: str
) -> None:
    alembic(
        tmp_path,
        dev,
        f"from flask import current_app\n{RUN}\nwith"
        f" current_app.extensions['migrate'].db.engine.connect() as c: run(c)\n",
    )
    (tmp_path / "alembic.ini").rename(tmp_path / "migrations" / "alembic.ini")
    write(
        tmp_path,
        {
            "app.py": f"""
            from flask import Flask
            from flask_migrate import Migrate
            from flask_sqlalchemy import SQLAlchemy
            app = Flask(__name__)
            app.config["SQLALCHEMY_DATABASE_URI"] = {dev.url("+psycopg")!r}
            db = SQLAlchemy(app)
            Migrate(app, db)
            """
        },
    )
    found = schema(tmp_path, "flask db upgrade")
    assert "file migrations/versions/a1.py" in found.manifest()
    found.build(url, quiet)
    assert tables(url) == {"users", "alembic_version"}


@pytest.mark.parametrize("kind", ["alembic", "django"])
def test_from_the_front_door_the_developers_database_stays_and_later_runs_reuse_the_right_template(
    project: Project, server: Server, dev: Developer, kind: str
) -> None:
    if kind == "alembic":
        alembic(project.folder, dev, FROM_CONFIG)
        table = "users"
    else:
        django(project.folder, dev, DATABASES["in the code"])
        table = "shop_item"
    project.configure(
        schema={"alembic": "alembic upgrade head", "django": "manage.py migrate"}[kind], bind=None
    )
    project.write(
        test_a=f"def test_a(dbclone):\n    assert dbclone.execute('TABLE"
        f" {table}').fetchall() == []\n"
    )
    done = project.run("dbclone", "prepare", DATABASE_URL=dev.url())
    assert done.returncode == 0, done.stderr
    assert "d3vel0per" not in done.stdout + done.stderr
    done = project.pytest(DATABASE_URL=dev.url())
    assert "1 passed" in done.stdout, done.stdout
    assert "reused" in done.stdout


def test_errors_of_a_build_are_ours(tmp_path: Path, dev: Developer, url: str) -> None:
    alembic(tmp_path, dev, "import psycopg\npsycopg.connect('dbname=a b')\n")
    with pytest.raises(Error, match="alembic raised ProgrammingError"):
        schema(tmp_path, "alembic").build(url, quiet)
