"""What all tests share: a real private server per test process, in a cache of its own, and sample
projects run as a user would.

The binaries are the newest that dbclone finds, or those in the folder TEST_BINARIES, so that the
same tests run on another version of PostgreSQL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.databases.prune import prune
from dbclone.server.dsn import Dsn
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load
from dbclone.template.template import Template

from . import developer
from .private import clear
from .shop import cloned

pytest_plugins = ["pytester"]

# Without TEST_EXAMPLES every run tries the same programs and texts, so that a failure tells of the
# last change and not of luck; with it others each time, so many times as many.
hypothesis.settings.register_profile("the same", derandomize=True)
if "TEST_EXAMPLES" not in os.environ:
    hypothesis.settings.load_profile("the same")

# Their own database is a developer's, on the same server: whoever is not led to a clone writes
# there, and that is noticed.
MODELS = """
import os
from peewee import CharField, ForeignKeyField, Model, PostgresqlDatabase, TextField

db = PostgresqlDatabase("shop_dev", host=os.environ.get("SHOP_HOST", "nowhere.invalid"), user="postgres", prefer_psycopg3=True)

class Base(Model):
    class Meta:
        database = db

class User(Base):
    name = CharField(unique=True)

class Post(Base):
    user = ForeignKeyField(User)
    text = TextField()

MODELS = [Post, User]
"""


# What a pytest process of a test does not load: plugins of our own tests, which would cost as much
# as all the rest of its start.
LEAN = "-p no:fakefs -p no:hypothesispytest -p no:time_machine"


@pytest.fixture(scope="session", autouse=True)
def _neutral_environment() -> Iterator[None]:
    """Nothing of the machine's own configuration, nor of the run that these tests are in, reaches
    the code under test."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if (
            name.startswith(("DBCLONE_", "PG", "PYTEST_XDIST_")) and name != "TEST_BINARIES"
        ) or name in (
            "DATABASE_URL",
            "PYTEST_ADDOPTS",
        ):
            patch.delenv(name)
    patch.delenv("TEST_BINARIES", raising=False)
    patch.setenv("PYTEST_ADDOPTS", LEAN)
    yield
    patch.undo()


_BINARIES = os.environ.get("TEST_BINARIES", "")

# Run once, on the embedded server: they are about no server, so that another version of it would
# find nothing more.
collect_ignore = ["unit", "meta", "integration/benchmarks"] if _BINARIES else []


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this test process: its private server is nobody else's. A user's files
    are beside it."""
    place = tmp_path_factory.mktemp("cache")
    with developer.files(place):
        yield place / "dbclone"


@pytest.fixture(scope="session")
def options(cache: Path) -> dict[str, str]:
    """Settings that lead to this test process's server."""
    return {"cache_dir": str(cache), **({"binaries": _BINARIES} if _BINARIES else {})}


@pytest.fixture(scope="session")
def settings(options: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of an empty project called suite on this test process's server."""
    return load(tmp_path_factory.mktemp("suite"), {**options, "name": "suite"}, {})


@pytest.fixture(scope="session")
def server(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The private server of this test process, as a superuser; stopped and removed at the end.

    A developer has databases on it and files near its folders, which are compared with what they
    were: see `developer`.
    """
    with Server.open(settings) as opened, pytest.MonkeyPatch.context() as patch:
        assert opened.embedded is not None
        home = opened.embedded.home
        patch.setenv(developer.HOST, str(opened.dsn.get("host")))
        try:
            with developer.neighbourhood(tmp_path_factory.getbasetemp()):
                with developer.databases(
                    opened.dsn.url, _comment_of_a_clone(settings, tmp_path_factory.mktemp("copied"))
                ):
                    yield opened
        finally:
            opened.embedded.cluster.stop()
            shutil.rmtree(home, ignore_errors=True)


def _comment_of_a_clone(settings: Settings, folder: Path) -> str:
    """Return the comment of a database that dbclone made on the server and has dropped since."""
    (folder / "schema.sql").write_text("CREATE TABLE item (id int)")
    own = replace(settings, root=folder, name="copied", schema=("schema.sql",), retain_days=0)
    with Server.open(own) as server:
        with Template.ensure(server, handles.load(own)[0]).clone("gw0") as clone:
            ((comment,),) = server.fetch(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
                [clone.name],
            )
        prune(server, everything=True)
    return str(comment)


if developer.EACH in os.environ:

    @pytest.fixture(autouse=True)
    def _untouched(server: Server) -> Iterator[None]:
        """Compare after each test, to find out which of them has touched what is not its own."""
        yield
        developer.compare()


@pytest.fixture
def role(server: Server) -> Iterator[Dsn]:
    """A role with CREATEDB and nothing else, as the Dsn that connects as it; what it made is
    dropped afterwards."""
    name = f"plain_{uuid.uuid4().hex[:8]}"
    server.connection.execute(
        psycopg.sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(psycopg.sql.Identifier(name))
    )
    yield server.dsn.replace(user=name)
    for (database,) in server.fetch(
        "SELECT datname::text FROM pg_database WHERE datdba = (SELECT oid FROM pg_roles"
        " WHERE rolname = %s)",
        [name],
    ):
        identifier = psycopg.sql.Identifier(database)
        server.connection.execute(
            psycopg.sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(identifier)
        )
        server.connection.execute(
            psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier)
        )
    server.connection.execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(name)))


@pytest.fixture
def own(tmp_path: Path, options: dict[str, str]) -> Iterator[Settings]:
    """Settings with a cache of their own, and so a server of their own; whatever it left is
    removed."""
    found = load(tmp_path, {**options, "cache_dir": str(tmp_path / "cache")}, {})
    with developer.files(tmp_path, name="papers"):  # a project beside it has others
        yield found
    clear(Embedded.locate(found))


@dataclass
class Project:
    """A sample project in a folder of its own, run in processes of its own. `name` is unique, so
    tests never share templates."""

    folder: Path
    name: str
    environ: dict[str, str]

    def write(self, **files: str) -> None:
        """Write files; `test_a` becomes test_a.py, `pyproject` pyproject.toml."""
        for name, text in files.items():
            path = self.folder / ("pyproject.toml" if name == "pyproject" else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    def configure(self, **settings: Any) -> None:
        """Write pyproject.toml with these settings on top of the usual ones."""
        values = {"name": self.name, "schema": "models:MODELS", "bind": "models:db", **settings}
        lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
        self.write(pyproject="[tool.dbclone]\n" + "\n".join(lines) + "\n")

    def sql(self, text: str) -> Project:
        """Give the project one SQL file as its schema, and no handle; return the project."""
        self.configure(schema="schema.sql", bind=None)
        (self.folder / "schema.sql").write_text(text)
        return self

    def run(
        self, *command: str, timeout: float = 120, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m …` in the project and return what it did."""
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """Start `python -m …` in the project, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def pytest(
        self, *arguments: str, timeout: float = 120, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the project's tests."""
        return self.run("pytest", "-p", "no:cacheprovider", *arguments, timeout=timeout, **environ)

    def databases(self, server: Server) -> list[str]:
        """Return the names of this project's databases on the server."""
        return [
            name
            for (name,) in server.fetch(
                "SELECT datname::text FROM pg_database WHERE datname ~ %s ORDER BY 1",
                [f"^dbclone_{self.name}_"],
            )
        ]

    def clones(self, server: Server) -> list[str]:
        """Return the names of this project's databases that are not templates."""
        return [name for name in self.databases(server) if f"dbclone_{self.name}_t_" not in name]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return (
        str(value)
        if isinstance(value, (int, float))
        else '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    )


@pytest.fixture
def project(tmp_path: Path, server: Server, options: dict[str, str]) -> Iterator[Project]:
    """A peewee project with two tables on this test process's server, which is running. A user's
    files are beside it."""
    environ = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("DBCLONE_", "PG", "PYTEST_")) and k != "DATABASE_URL"
    }
    environ |= {f"DBCLONE_{key.upper()}": value for key, value in options.items()}
    found = Project(
        tmp_path / "project",
        f"p{uuid.uuid4().hex[:8]}",
        {**environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": LEAN},
    )
    found.configure()
    found.write(models=MODELS)
    with developer.files(tmp_path):
        yield found


#: What the fixture `shop` gives: opens the server, with further settings.
Open = Callable[..., Server]


@pytest.fixture
def shop_project(project: Project) -> Project:
    """The project of `shop`, whose schema is one SQL file. Modules in which it has another override
    this."""
    return project.sql("CREATE TABLE item (id int);")


@pytest.fixture
def shop_options(options: dict[str, str]) -> dict[str, str]:
    """Settings that lead `shop` to its server. Modules in which it is another override this."""
    return options


@pytest.fixture
def shop(shop_project: Project, shop_options: dict[str, str]) -> Iterator[Open]:
    """A function that opens the server with the settings of a project, and further settings."""
    with contextlib.ExitStack() as stack:
        yield lambda **more: stack.enter_context(
            Server.open(load(shop_project.folder, {**shop_options, **more}, {}))
        )


@pytest.fixture
def project_server(shop: Open) -> Server:
    """The server as the project of `shop` sees it."""
    return shop()


def _clone_of(
    request: pytest.FixtureRequest, server: Server, settings: Settings, folder: Path
) -> contextlib.AbstractContextManager[Clone]:
    mark = request.node.get_closest_marker("clone_of")
    said: dict[str, Any] = dict(mark.kwargs) if mark else {}
    made: contextlib.AbstractContextManager[Clone] = said.pop("make", cloned)(
        server, settings, folder, **said
    )
    return made


@pytest.fixture(scope="module")
def cloning_server(server: Server) -> Server:
    """The server as who makes `clone` sees it. Modules that try other roles override this."""
    return server


@pytest.fixture(scope="module")
def clone(
    request: pytest.FixtureRequest,
    cloning_server: Server,
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Clone]:
    """A clone that the tests of a module share: of the schema of `shop.py`, or of what the module's
    mark `clone_of` says."""
    with _clone_of(request, cloning_server, settings, tmp_path_factory.mktemp("clone")) as made:
        yield made


@pytest.fixture
def fresh_clone(
    request: pytest.FixtureRequest, server: Server, settings: Settings, tmp_path: Path
) -> Iterator[Clone]:
    """As `clone`, of one test alone, which may spoil it."""
    with _clone_of(request, server, settings, tmp_path) as made:
        yield made
