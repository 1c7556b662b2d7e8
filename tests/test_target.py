"""Where the server is, said before the first test: nobody is led elsewhere by a variable without seeing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbclone.run import target
from dbclone.settings import load

from .conftest import Project

PG = {"PGHOST": "db.example", "PGPORT": "5433", "PGUSER": "ann", "PGPASSWORD": "s3cr3t", "PGDATABASE": "shop"}


def test_libpqs_variables_and_their_service_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S24."""
    for name, value in PG.items():
        monkeypatch.setenv(name, value)
    assert target(load(tmp_path, {}, {})) == "server at host db.example, port 5433, user ann (from PG variables)"
    (tmp_path / "services").write_text("[s]\nhost=other.example\nuser=bob\npassword=s3cr3t\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "s")
    assert target(load(tmp_path, {}, {})) == "server at host other.example, port 5433, user bob (from PG variables)"


def test_a_url_wins_and_the_private_server_follows_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S24, S8: without the URL itself."""
    monkeypatch.setenv("PGPORT", "5433")
    assert target(load(tmp_path, {}, {})) == "private server"
    monkeypatch.setenv("PGHOST", "db.example")
    url = "postgresql://ann:s3cr3t@h:1/x?hostaddr=10.0.0.1"
    assert (
        target(load(tmp_path, {"url": url}, {})) == "server at host h, hostaddr 10.0.0.1, port 1, user ann (from the option --url)"
    )


def test_the_header_of_a_run_says_it(project: Project) -> None:
    """S24, S8, S25."""
    words = ("--collect-only", "-q", "--co", "-v")
    said = project.pytest(*words, timeout=120, DBCLONE_URL="postgresql://ann:s3cr3t@h:1/x").stdout
    assert (
        f"dbclone: project {project.name}, server at host h, port 1, user ann (from the environment variable DBCLONE_URL)" in said
    )
    said = project.pytest(*words, timeout=120, **{**PG, "PGHOST": "db\x1b[2J"}).stdout
    assert "server at host db\\x1b[2J, port 5433, user ann (from PG variables)" in said
    assert "s3cr3t" not in said
