"""The decorator that replaces create and drop tables: the old call, the new speed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dbclone.adapters.handles import bound_to
from dbclone.adapters.peewee import with_test_db
from dbclone.clone.clone import Clone
from dbclone.errors import SettingsError

from ...conftest import Project
from .test_peewee import MODELS, Person, names, plain, reset

pytestmark = pytest.mark.clone_of(schema=MODELS)

__all__ = ["reset"]  # fixtures


def decorated(style: str) -> Callable[..., Any]:
    @with_test_db(MODELS)
    def function(one: int, *rest: int, two: int = 2, **more: int) -> Any:
        assert names() == []
        Person.create(name="x")
        return one, rest, two, more, names()

    @with_test_db(MODELS)
    async def coroutine(one: int, *rest: int, two: int = 2, **more: int) -> Any:
        Person.create(name="x")
        await asyncio.sleep(0)
        return one, rest, two, more, names()

    class Holder:
        @with_test_db(MODELS)
        def method(self, one: int, *rest: int, two: int = 2, **more: int) -> Any:
            Person.create(name="x")
            return one, rest, two, more, names()

    if style == "coroutine":
        return lambda *a, **k: asyncio.run(coroutine(*a, **k))
    return Holder().method if style == "method" else function


@pytest.mark.parametrize("style", ["function", "method", "coroutine"])
@pytest.mark.parametrize("with_handle", [True, False])
def test_the_decorator_hands_everything_through_and_leaves_an_empty_database(
    clone: Clone, reset: str, style: str, with_handle: bool
) -> None:
    """The models belong to another database altogether, or to none."""
    db = plain()
    with bound_to(db, clone.url):
        clone.handle = db if with_handle else None
        for _ in range(2):
            with clone.isolated(reset, "test") as isolation:
                assert decorated(style)(1, 5, 6, two=3, four=4, dbclone=isolation) == (
                    1,
                    (5, 6),
                    3,
                    {"four": 4},
                    ["x"],
                )
        clone.handle = None


def test_the_decorator_without_a_clone_says_so() -> None:
    with pytest.raises(SettingsError, match="there is no clone to bind to"):
        decorated("function")(1)


def test_the_decorator_under_pytest(project: Project) -> None:
    """With fixtures, parameters, classes, and a dbclone fixture that the test may or may not ask
    for."""
    project.write(
        test_a="""
        import pytest
        from dbclone.adapters.peewee import with_test_db
        from models import Post, User
        @pytest.fixture
        def word():
            return "word"
        @with_test_db((User, Post))
        def test_function(word):
            User.create(name=word)
            assert User.select().count() == 1
        @pytest.mark.parametrize("i", [1, 2])
        @with_test_db([User])
        def test_parametrised(i, word, dbclone):
            User.create(name=word)
            assert dbclone.execute('SELECT count(*) FROM "user"').fetchone() == (1,)
        class TestClass:
            @with_test_db((User,))
            def test_method(self, word):
                User.create(name=word)
                assert User.select().count() == 1
        """
    )
    for workers in ("0", "2"):
        done = project.pytest("-q", "-n", workers)
        assert "4 passed" in done.stdout, done.stdout + done.stderr
