"""The application's handle leads to the clone whatever the application does to it, and nowhere
where nothing isolates it.

A developer's database stands beside: each project knows it, tries to reach it, and leaves it as it
was.
"""

from __future__ import annotations

import pytest

from ..conftest import Project
from .conftest import Developer

PEEWEE = """
import json, os
from peewee import *
from playhouse.pool import PooledPostgresqlDatabase

def dev(kind=PostgresqlDatabase, **more):
    given = {"prefer_psycopg3": True, **json.loads(os.environ["DEV"]), **more}
    return kind(given.pop("dbname"), **given)

def connected(found):
    found.connect()
    return found
"""

USER = """
class User(Model):
    name = TextField()
    class Meta:
        database = %s

MODELS = [User]
"""

CHECK = """
import contextlib, pytest
from models import *
import models

RESETS = [pytest.param(r, marks=pytest.mark.dbclone(reset=r)) for r in ("rollback", "truncate", "clone", "drop")]

def check(database):
    assert User.select().count() == 0
    User.create(name="ann")
    with User._meta.database.atomic():
        User.create(name="bob")
    assert User.select().count() == 2
    assert database.execute_sql("SELECT current_database()").fetchone()[0].startswith("dbclone_")
"""

PROXY = """
def initialize_with_another_proxy():
    inner = DatabaseProxy()
    db.initialize(inner)
    inner.initialize(dev())

WAYS = {
    "initialize": lambda: db.initialize(dev()),
    "initialize, connected": lambda: db.initialize(connected(dev())),
    "a pool": lambda: db.initialize(dev(PooledPostgresqlDatabase, max_connections=3)),
    "psycopg2": lambda: db.initialize(dev(prefer_psycopg3=False)),
    "a proxy": initialize_with_another_proxy,
    "assigned": lambda: setattr(db, "obj", dev()),
    "init": lambda: db.init(**{{"database": "postgres", "host": "nowhere.invalid"}}),
    "init, psycopg2": lambda: db.init("postgres", host="nowhere.invalid", prefer_psycopg3=False),
}

@pytest.fixture(scope="session")
def early():
    db.initialize(dev())

@pytest.fixture
def late(way):
    WAYS[way]()

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("way", WAYS)
def test_in_a_test(dbclone, way, reset):
    WAYS[way]()
    check(db)
    WAYS[way]()
    assert User.select().count() == 2

@pytest.mark.parametrize("reset", RESETS[:2])
@pytest.mark.parametrize("way", WAYS)
def test_in_a_fixture(dbclone, late, reset):
    check(db)

@pytest.mark.parametrize("reset", RESETS)
def test_in_a_fixture_of_the_session(early, dbclone, reset):
    check(db)

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("ready", [dev, lambda: connected(dev())])
def test_models_bound_elsewhere(dbclone, reset, ready):
    other = ready()
    with other.bind_ctx(MODELS):
        check(other)
    User.bind(ready())
    assert User.select().count() == 2
    User._meta.set_database(db)
    assert User.select().count() == 2
"""

DEFERRED = """
WAYS = {"init": lambda: init(), "psycopg2": lambda: init(prefer_psycopg3=False)}

def init(**more):
    given = {"prefer_psycopg3": True, **json.loads(os.environ["DEV"]), **more}
    db.init(given.pop("dbname"), **given)

@pytest.fixture(params=["init", "psycopg2"])
def late(request):
    WAYS[request.param]()

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("way", WAYS)
def test_in_a_test(dbclone, way, reset):
    WAYS[way]()
    check(db)

@pytest.mark.parametrize("reset", RESETS[:2])
def test_in_a_fixture(dbclone, late, reset):
    check(db)
"""

FLASK = """
from flask import Flask

def application(**options):
    app = Flask("shop")
    app.config["DATABASE"] = dev(**options)
    flask_db.init_app(app)
    @app.post("/")
    def create():
        User.create(name="ann")
        return str(User.select().count())
    return app

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("n", range(2))
def test_an_application_of_its_own(dbclone, reset, n):
    client = application().test_client()
    assert client.post("/").text == "1"
    assert client.post("/").text == "2"
    assert dbclone.execute('SELECT count(*) FROM "user"').fetchone() == (2,)
"""


@pytest.mark.parametrize(
    ("handle", "tests", "passed", "workers"),
    [
        (
            "db = DatabaseProxy()" + USER % "db",
            PROXY.replace("{{", "{").replace("}}", "}"),
            60,
            "0",
        ),
        ("db = PostgresqlDatabase(None)" + USER % "db", DEFERRED, 12, "0"),
        (
            "from playhouse.flask_utils import FlaskDB\ndb = flask_db ="
            " FlaskDB()\nflask_db.database = DatabaseProxy()" + USER % "flask_db.database",
            FLASK,
            8,
            "2",
        ),
    ],
    ids=["Proxy", "deferred", "FlaskDB"],
)
def test_peewees_handles_are_followed(
    project: Project, developer: Developer, handle: str, tests: str, passed: int, workers: str
) -> None:
    project.write(models=PEEWEE + handle, test_a=CHECK + tests)
    done = project.pytest("-q", "-n", workers, "-p", "no:randomly", **developer.environ)
    assert done.stdout.splitlines()[-1].startswith(f"{passed} passed"), done.stdout
    assert "warning" not in done.stdout.splitlines()[-1], done.stdout


SQLALCHEMY = """
import asyncio, json, os
from sqlalchemy import URL, create_engine, func, insert, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

DEV = json.loads(os.environ["DEV"])
URL = URL.create("postgresql+psycopg", DEV["user"], database=DEV["dbname"], query={"host": DEV["host"], "port": DEV["port"]})

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

def dev(**options):
    return create_engine(URL, **options)

def connected():
    found = dev()
    found.connect().close()
    return found

engine = None
Session = sessionmaker(dev())
Scoped = scoped_session(sessionmaker(dev()))
Async = async_sessionmaker(create_async_engine(URL))

def create_app():
    global engine
    found = dev()
    Base.metadata.create_all(found)  # before anybody can know what it will be
    engine = found
"""

ALCHEMY = """
import asyncio, pytest
import models
from models import *

RESETS = [pytest.param(r, marks=pytest.mark.dbclone(reset=r)) for r in ("rollback", "truncate", "clone", "drop")]

def check(session):
    with session:
        assert session.scalar(select(func.count()).select_from(User)) == 0
        session.add(User(name="ann"))
        session.commit()
        assert session.scalar(text("SELECT current_database()")).startswith("dbclone_")
        assert session.scalar(select(func.count()).select_from(User)) == 1
"""

SESSIONS = """
WAYS = {
    "configure": lambda: Session.configure(bind=dev()),
    "keywords": lambda: Session.kw.update(bind=connected()),
    "an option engine": lambda: Session.configure(bind=dev().execution_options(logging_token="x")),
}

@pytest.fixture(scope="session")
def early():
    Session.configure(bind=dev())

@pytest.fixture
def late(way):
    WAYS[way]()

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("way", WAYS)
def test_in_a_test(dbclone, way, reset):
    WAYS[way]()
    check(Session())

@pytest.mark.parametrize("reset", RESETS[:2])
@pytest.mark.parametrize("way", WAYS)
def test_in_a_fixture(dbclone, late, reset):
    check(Session())

@pytest.mark.parametrize("reset", RESETS)
def test_for_one_session(early, dbclone, reset):
    check(Session(bind=dev()))
"""

SCOPED = """
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("n", range(2))
def test_configured_in_a_test(dbclone, n, reset):
    Scoped.remove()
    Scoped.configure(bind=dev())
    check(Scoped())
    Scoped.remove()

@pytest.mark.parametrize("reset", RESETS)
def test_for_one_session(dbclone, reset):
    Scoped.remove()
    check(Scoped(bind=dev()))
    Scoped.remove()
"""

ASYNC = """
async def program(**options):
    async with Async(**options) as session:
        assert await session.scalar(select(func.count()).select_from(User)) == 0
        session.add(User(name="ann"))
        await session.commit()
        assert (await session.scalar(text("SELECT current_database()"))).startswith("dbclone_")

@pytest.mark.parametrize("reset", RESETS)
def test_configured_in_a_test(dbclone, reset):
    Async.configure(bind=create_async_engine(URL))
    asyncio.run(program())

@pytest.mark.parametrize("reset", RESETS)
def test_for_one_session(dbclone, reset):
    asyncio.run(program(bind=create_async_engine(URL)))
"""

ENGINE = """
from sqlalchemy.orm import Session as Plain

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("n", range(2))
def test_made_by_a_factory(dbclone, n, reset):
    create_app()
    check(Plain(models.engine))

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("make", [dev, connected])
def test_assigned(dbclone, make, reset):
    models.engine = make()
    check(Plain(models.engine))

@pytest.mark.parametrize("reset", RESETS)
def test_another_one_to_the_same_place(dbclone, reset):
    models.engine = dev()
    check(Plain(dev(isolation_level="SERIALIZABLE")))
"""


@pytest.mark.parametrize(
    ("bind", "tests", "passed", "workers"),
    [
        ("Session", SESSIONS, 22, "0"),
        ("Scoped", SCOPED, 12, "2"),
        ("Async", ASYNC, 8, "0"),
        ("engine", ENGINE, 20, "0"),
    ],
)
def test_sqlalchemys_handles_are_followed(
    project: Project, developer: Developer, bind: str, tests: str, passed: int, workers: str
) -> None:
    project.configure(schema="models:Base.metadata", bind=f"models:{bind}")
    source = (
        SQLALCHEMY.replace("engine = None", "engine = dev()") if bind == "engine" else SQLALCHEMY
    )
    project.write(models=source, test_a=ALCHEMY + tests)
    done = project.pytest("-q", "-n", workers, "-p", "no:randomly", **developer.environ)
    assert done.stdout.splitlines()[-1].startswith(f"{passed} passed"), done.stdout
    assert "dbclone" not in done.stderr


POOLS = """
import asyncio, json, os
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool, NullConnectionPool

DEV = make_conninfo(**json.loads(os.environ["DEV"]))

pool = ConnectionPool(DEV, open=False)
apool = AsyncConnectionPool(DEV, open=False)
"""

POOL = """
import asyncio, pytest
import models
from models import *

RESETS = [pytest.param(r, marks=pytest.mark.dbclone(reset=r)) for r in ("rollback", "truncate", "clone", "drop")]

def assigned(kind=ConnectionPool, **options):
    models.pool.close()
    models.pool = kind(DEV, open=True, **options)

def conninfo():
    models.pool.open()
    models.pool.wait()
    models.pool.conninfo = DEV

def keywords():
    models.pool.kwargs = {"dbname": "postgres", "application_name": "x"}

WAYS = {"assigned": assigned, "null": lambda: assigned(NullConnectionPool), "conninfo": conninfo, "kwargs": keywords}

def check():
    models.pool.open()
    for wanted in (1, 2):
        with models.pool.connection() as connection:
            connection.execute("INSERT INTO \\"user\\" (name) VALUES ('ann')")
            assert connection.execute('SELECT count(*) FROM "user"').fetchone() == (wanted,)
            assert connection.info.dbname.startswith("dbclone_")

@pytest.fixture
def late(way):
    WAYS[way]()

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("way", WAYS)
def test_in_a_test(dbclone, way, reset):
    WAYS[way]()
    check()
    models.pool.close()
    models.pool = ConnectionPool(DEV, open=False)

@pytest.mark.parametrize("reset", RESETS[:2])
@pytest.mark.parametrize("way", WAYS)
def test_in_a_fixture(dbclone, late, reset):
    check()
    models.pool.close()
    models.pool = ConnectionPool(DEV, open=False)
"""

APOOL = """
import asyncio, pytest
import models
from models import *

RESETS = [pytest.param(r, marks=pytest.mark.dbclone(reset=r)) for r in ("rollback", "truncate", "clone", "drop")]

async def program(way):
    if way == "opened":
        models.apool = AsyncConnectionPool(DEV, open=False)
        await models.apool.open(wait=True)
    elif way == "opened first":
        found = AsyncConnectionPool(DEV, open=False)
        await found.open(wait=True)
        models.apool = found
    else:
        await models.apool.open()
        models.apool.conninfo = DEV
    for wanted in (1, 2):
        async with models.apool.connection() as connection:
            await connection.execute("INSERT INTO \\"user\\" (name) VALUES ('ann')")
            assert await (await connection.execute('SELECT count(*) FROM "user"')).fetchone() == (wanted,)
            assert connection.info.dbname.startswith("dbclone_")
    await models.apool.close()
    models.apool = AsyncConnectionPool(DEV, open=False)

@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("way", ["opened", "opened first", "conninfo"])
def test_in_a_test(dbclone, way, reset):
    asyncio.run(program(way))
"""


@pytest.mark.parametrize(("bind", "tests", "passed"), [("pool", POOL, 24), ("apool", APOOL, 12)])
def test_pools_are_followed(
    project: Project, developer: Developer, bind: str, tests: str, passed: int
) -> None:
    project.configure(schema="*.sql", bind=f"models:{bind}")
    project.write(models=POOLS, test_a=tests)
    (project.folder / "schema.sql").write_text(
        'CREATE TABLE "user" (id serial PRIMARY KEY, name text);\n'
    )
    done = project.pytest("-q", "-p", "no:randomly", **developer.environ)
    assert done.stdout.splitlines()[-1].startswith(f"{passed} passed"), done.stdout
