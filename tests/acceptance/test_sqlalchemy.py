"""A SQLAlchemy project with nothing but its settings, as the README shows it, under pytest-xdist."""

from __future__ import annotations

import pytest

from dbclone.server.server import Server

from ..conftest import Project
from ..readme import blocks

MODELS = """
import os
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

engine = create_engine("postgresql+psycopg://postgres@/shop_dev?host=" + os.environ["SHOP_HOST"], pool_pre_ping=True)
Session = sessionmaker(engine)

class Base(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)

def register(name):
    with Session.begin() as session:
        session.add(User(name=name))

def seed():
    register("seed")
"""

TESTS = """
import pytest
from shop.models import Session, User, engine, register
from sqlalchemy import delete, select, text
from sqlalchemy.exc import IntegrityError

OPEN = Session()  # as a module keeps one, and nobody closes it

def names():
    return sorted(OPEN.scalars(select(User.name)))

@pytest.mark.parametrize("n", range(6))
def test_committed_and_failed(n):
    assert names() == ["seed"]
    register("ann")
    with pytest.raises(IntegrityError):
        register("ann")
    OPEN.rollback()
    assert names() == ["ann", "seed"]
    OPEN.execute(delete(User))
    OPEN.commit()

@pytest.mark.parametrize("reset", ["truncate", "clone", "drop", "rollback"])
def test_whatever_the_reset(reset, request):
    assert names() == ["seed"]
    register("ann")
    OPEN.rollback()
    assert names() == ["ann", "seed"]
    assert OPEN.scalar(text("SELECT current_database()")) == engine.url.database
    OPEN.rollback()

@pytest.fixture(scope="module")
def clerk(dbclone_module):
    register("clerk")

@pytest.mark.parametrize("n", range(3))
def test_the_data_of_a_module(clerk, n):
    with Session.begin() as session:
        assert sorted(session.scalars(select(User.name))) == ["clerk", "seed"]
        session.execute(delete(User))
"""


def configured(project: Project, **settings: object) -> Project:
    project.write(**{"shop/__init__": "", "shop/models": MODELS})
    project.configure(
        schema="shop.models:Base.metadata", bind="shop.models:engine", autouse=True, **settings
    )
    return project


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_readmes_project(project: Project, server: Server, workers: str) -> None:
    project.write(**{"shop/__init__": "", "shop/models": MODELS})
    (toml,) = [block for block in blocks("toml") if "metadata" in block]
    (tests,) = blocks("py")
    project.write(pyproject=f"{toml}name = {project.name!r}\n", test_readme=tests)
    done = project.pytest("-q", "-n", workers)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    assert "2 x rollback" in done.stdout
    assert "warning" not in done.stdout
    assert project.clones(server) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_reset_and_layer_of_a_project_with_a_seed(
    project: Project, server: Server, workers: str
) -> None:
    configured(project, seed="shop.models:seed")
    marked = TESTS.replace(
        '["truncate", "clone", "drop", "rollback"]',
        '[pytest.param(r, marks=pytest.mark.dbclone(reset=r)) for r in ("truncate", "clone",'
        ' "drop", "rollback")]',
    )
    split = marked.index("@pytest.fixture(scope")
    project.write(test_a=marked[:split], test_b=TESTS[: TESTS.index("OPEN")] + marked[split:])
    done = project.pytest("-q", "-n", workers, "--dist", "loadfile")
    assert "13 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout
    assert project.clones(server) == []


def test_a_changed_model_is_a_new_template_and_said(project: Project) -> None:
    configured(project)
    project.write(test_a="def test_a():\n    pass\n")
    assert "reused" not in project.pytest("-q").stdout
    project.write(**{"shop/models": MODELS.replace("unique=True", "unique=True, index=True")})
    assert "table users changed" in project.pytest("-q").stdout
    assert "1 passed" in project.pytest("-q").stdout


def test_a_project_without_sqlalchemy_never_imports_it(project: Project) -> None:
    project.write(
        test_a="""
        import sys
        from models import User
        def test_a(dbclone):
            User.create(name="ann")
            assert not [name for name in sys.modules if name.partition(".")[0] in ("sqlalchemy", "sqlmodel", "flask_sqlalchemy")]
        """
    )
    done = project.pytest("-q")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
