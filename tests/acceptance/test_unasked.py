"""Installed but unasked, dbclone does nothing, and loads nothing."""

from __future__ import annotations

from ..conftest import Project
from .test_fixtures import passes


def test_a_session_that_asks_for_nothing_starts_nothing(project: Project) -> None:
    """With a server that cannot be found, only the test that asks fails; collecting and help need
    none."""
    project.write(test_a="def test_plain(): pass\n\ndef test_asks(dbclone): pass\n")
    broken = {"DBCLONE_BINARIES": "/nonexistent"}
    passes(project, 1, "-k", "plain", **broken)
    for arguments in (["--collect-only"], ["--help"], ["--collect-only", "-n", "2"]):
        assert project.pytest(*arguments, timeout=120, **broken).returncode == 0
    done = project.pytest("-q", timeout=120, **broken)
    assert "1 passed, 1 error" in done.stdout
    assert "ServerNotFound" in done.stdout
    assert "/nonexistent" in done.stdout


def test_pytest_without_dbclones_settings_loads_nothing_of_it(project: Project) -> None:
    project.write(
        pyproject="[project]\nname = 'x'\n",
        test_a="""
        import sys
        def test_it():
            assert not {"psycopg", "filelock", "dbclone.runner", "dbclone.settings"} & set(sys.modules)
        """,
    )
    for name in [name for name in project.environ if name.startswith("DBCLONE_")]:
        del project.environ[name]
    output = passes(project, 1)
    assert "dbclone" not in output
