"""Data of a class or module stay in place whatever the order of tests, and whatever fails in
between."""

from __future__ import annotations

import pytest

from ..conftest import Project

SHUFFLE = """
    import os, random

    def pytest_collection_modifyitems(items):
        random.Random(int(os.environ["SEED"])).shuffle(items)  # as no sane plugin would: classes and modules torn apart
    """
MODULE = """
    import pytest
    from models import User

    def names():
        return sorted(user.name for user in User.select())

    @pytest.fixture(scope="module")
    def street(dbclone_module):
        User.create(name=__name__)

    @pytest.fixture(scope="class")
    def room(street, dbclone_class, request):
        User.create(name=request.cls.__name__)

    class Base:
        @pytest.mark.parametrize("n", range(3))
        def test_it(self, room, dbclone, n):
            assert names() == sorted([__name__, type(self).__name__])
            User.create(name="mine")
            User.update(name=User.name.concat("!")).execute()

        def test_fails(self, room, dbclone):
            User.delete().execute()
            assert False, "on purpose"

        @pytest.fixture
        def broken(self, dbclone):
            User.create(name="broken")
            raise ValueError("on purpose")

        def test_with_a_broken_fixture(self, room, broken):
            pass

    class TestOne(Base): pass
    class TestTwo(Base): pass

    def test_alone(dbclone):
        assert set(names()) <= {__name__}
    """


@pytest.mark.parametrize(("workers", "seed"), [(0, 1), (0, 2), (2, 3)])
def test_layers_are_entered_and_left_in_their_order(
    project: Project, workers: int, seed: int
) -> None:
    """Seven tests that pass in each module, and four that fail on purpose and harm nobody."""
    project.write(conftest=SHUFFLE, test_a=MODULE, test_b=MODULE)
    done = project.pytest("-q", "-n", str(workers), "-p", "no:randomly", SEED=str(seed))
    assert "4 failed, 14 passed, 4 errors" in done.stdout, done.stdout
    assert done.stdout.count("ValueError: on purpose") >= 4


def test_a_layer_whose_own_fixture_fails_leaves_nothing(project: Project) -> None:
    project.write(
        test_a="""
        import pytest
        from models import User

        @pytest.fixture(scope="class")
        def broken(dbclone_class):
            User.create(name="half")
            raise ValueError("on purpose")

        class TestBroken:
            def test_one(self, broken, dbclone): pass
            def test_two(self, broken, dbclone): pass

        class TestNext:
            def test_three(self, dbclone_class, dbclone):
                assert User.select().count() == 0
        """
    )
    done = project.pytest("-q")
    assert "1 passed, 2 errors" in done.stdout, done.stdout
