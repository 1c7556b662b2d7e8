"""Flask-SQLAlchemy and SQLModel: an application factory, one app context for a whole suite,
requests that fail."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, SQLModel
from sqlmodel import Session as ModelSession
from sqlmodel import select as select_models

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.errors import SandboxLimit, SettingsError

from ....developer import application_url
from .conftest import Bind, engine
from .programs import Base

pytestmark = pytest.mark.clone_of(schema=Base.metadata)

RESETS = pytest.mark.parametrize("reset", ["rollback", "truncate", "clone"])


class Hero(SQLModel, table=True):
    __tablename__ = "person"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)


def make_app(db: Any, url: str = "", **config: Any) -> Flask:
    """Return an application that leads to a developer's database, or to `url`."""
    app = Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI=url or application_url(), **config)
    db.init_app(app)

    @app.post("/people/<name>")
    def create(name: str) -> tuple[str, int]:
        db.session.add(db.Person(name=name))
        try:
            db.session.commit()
        except IntegrityError:
            db.session.rollback()
            return "taken", 409
        return name, 201

    @app.get("/people")
    def people() -> list[str]:
        return list(db.session.scalars(db.select(db.Person.name).order_by(db.Person.name)))

    @app.get("/broken")
    def broken() -> str:
        db.session.add(db.Person(name="broken"))
        db.session.flush()
        raise ZeroDivisionError

    return app


@pytest.fixture
def db() -> Any:
    found: Any = SQLAlchemy(metadata=Base.metadata)

    class Person(found.Model):  # type: ignore[misc]
        __table__ = Base.metadata.tables["person"]

    found.Person = Person
    return found


def requests(app: Flask) -> list[Any]:
    client = app.test_client()
    seen: list[Any] = [client.post(f"/people/{name}").status_code for name in ("ann", "bob", "ann")]
    return [*seen, client.get("/people").json]


@RESETS
def test_requests_of_an_application_that_was_there_before(
    bind: Bind, clone: Clone, db: Any, reset: str
) -> None:
    app = make_app(db)
    bind(db)
    for _ in range(2):
        with clone.isolated(reset, "test") as isolation:
            assert requests(app) == [201, 201, 409, ["ann", "bob"]]
            assert app.test_client().get("/broken").status_code == 500
            assert isolation.execute("SELECT count(*) FROM person").fetchone() == (2,)


@RESETS
def test_an_application_factory_that_every_test_calls(
    bind: Bind, clone: Clone, db: Any, reset: str
) -> None:
    bind(db)
    made: list[weakref.ref[Any]] = []
    for _ in range(6):
        with clone.isolated(reset, "test") as isolation:
            app = make_app(db)
            with app.app_context():
                made.append(weakref.ref(db.engine))
            assert requests(app) == [201, 201, 409, ["ann", "bob"]]
            assert isolation.execute("SELECT count(*) FROM person").fetchone() == (2,)
            with app.app_context():
                db.engine.dispose()  # or psycopg warns when the pool is collected, as it does without dbclone
    del app
    gc.collect()
    assert sum(reference() is not None for reference in made) <= 3  # tracebacks may hold some
    assert "_make_engine" in vars(db)


@RESETS
def test_one_application_context_for_the_whole_suite(
    bind: Bind, clone: Clone, db: Any, reset: str
) -> None:
    """One db.session for all tests, which nobody removes, and the client's own beside it."""
    app = make_app(bind(db))
    with app.app_context():
        assert db.session.scalars(db.select(db.Person)).all() == []
        for _ in range(3):
            with clone.isolated(reset, "test"):
                assert db.session.scalars(db.select(db.Person)).all() == []
                assert requests(app) == [201, 201, 409, ["ann", "bob"]]
                db.session.rollback()
                ann = db.session.scalars(db.select(db.Person).filter_by(name="ann")).one()
                db.session.delete(ann)
                db.session.commit()
                assert app.test_client().get("/people").json == ["bob"]


def test_the_handle_is_as_before_afterwards(clone: Clone, db: Any) -> None:
    app = make_app(db)
    with handles.bound_to(db, clone.url):
        pass
    assert "_make_engine" not in vars(db)
    with app.app_context():
        assert db.engine.url == make_url(application_url())


def test_models_name_their_extension_as_the_handle(db: Any) -> None:
    adapter = handles.adapter_of(db)
    assert adapter is not None
    assert adapter.handle(db) is db
    assert adapter.handle(Base.metadata) is None


def test_only_the_default_bind_is_led_to_the_clone(bind: Bind, clone: Clone, db: Any) -> None:
    bind(db)
    other = "postgresql+psycopg://other@other.invalid/other"
    with clone.isolated("rollback", "test"):
        app = make_app(db, SQLALCHEMY_BINDS={"other": other})
        with app.app_context():
            assert db.engine.url.database == clone.name
            assert db.engines["other"].url.host == "other.invalid"


def test_an_application_that_cannot_be_sandboxed_is_refused_when_it_is_made(
    bind: Bind, clone: Clone, db: Any
) -> None:
    bind(db)
    with (
        clone.isolated("rollback", "test"),
        pytest.raises(SandboxLimit, match=r"postgresql\+psycopg://"),
    ):
        make_app(db, application_url("psycopg2"))
    with pytest.raises(SettingsError, match="sqlite"):
        make_app(db, "sqlite://")


@pytest.fixture
def heroes(bind: Bind) -> Any:
    return bind(engine())


@RESETS
def test_sqlmodel(heroes: Any, clone: Clone, reset: str) -> None:
    for _ in range(2):
        with clone.isolated(reset, "test"):
            with ModelSession(heroes) as session:
                session.add(Hero(name="ann"))
                session.commit()
                session.add(Hero(name="ann"))
                with pytest.raises(IntegrityError):
                    session.commit()
                session.rollback()
                session.add(Hero(name="undone"))
            with ModelSession(heroes) as session:
                assert [hero.name for hero in session.exec(select_models(Hero))] == ["ann"]
