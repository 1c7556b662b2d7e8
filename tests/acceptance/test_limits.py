"""What a rollback cannot show is said, named with the reset that can, and remembered."""

from __future__ import annotations

import pytest

from ..conftest import Project

LIMITS = """
    import pytest
    from dbclone import SandboxLimit
    from models import User, db

    @pytest.mark.parametrize("statement", [
        "VACUUM", "CREATE INDEX CONCURRENTLY ON \\"user\\" (name)", "LISTEN orders", "REINDEX DATABASE x",
        "PREPARE TRANSACTION 'x'",
    ])
    def test_refused(dbclone, statement):
        with pytest.raises(SandboxLimit, match=statement.split()[0] + "|two-phase") as caught:
            db.execute_sql(statement)
        assert statement[:20] in caught.value.detail
        assert 'reset="truncate"' in caught.value.hint
        User.create(name="goes on")

    def test_beyond_the_clone(dbclone):
        with pytest.raises(SandboxLimit, match="CREATE DATABASE in a test") as caught:
            db.execute_sql("CREATE DATABASE other")
        assert "truncate" not in caught.value.hint
        User.create(name="goes on")

    def test_swallowed(dbclone):
        try:
            db.execute_sql("VACUUM")
        except Exception:
            pass
        assert dbclone.reset in ("rollback", "truncate")

    def test_fails(dbclone):
        db.execute_sql("VACUUM \\"user\\"")
        assert dbclone.reset == "truncate"

    def test_other(dbclone):
        assert dbclone.reset == "rollback"
    """


@pytest.mark.parametrize("workers", [0, 2])
def test_it_is_named_and_that_test_begins_under_truncate_the_next_time(
    project: Project, workers: int
) -> None:
    """D7 (LISTEN), D10."""
    project.write(test_a=LIMITS)
    first = project.run("pytest", "-q", "-n", str(workers))
    assert "1 failed, 8 passed" in first.stdout
    assert "VACUUM inside a rollback" in first.stdout
    assert (
        "test_a.py::test_swallowed needs real transactions (VACUUM inside a rollback)"
        in first.stdout
    )
    second = project.run("pytest", "-q", "-n", str(workers), "-k", "not refused and not beyond")
    assert second.returncode == 0, second.stdout
    assert "2 x truncate" in second.stdout
