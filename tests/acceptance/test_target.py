"""Where the server is, said before the first test, and refused where only a file says it."""

from __future__ import annotations

import socket

import pytest

from ..conftest import Project
from ..unit.test_runner import PG


def test_nothing_is_sent_to_a_listener_that_only_a_file_names(project: Project) -> None:
    """Whatever is run: the refusal comes before the first connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        project.configure(url=f"postgresql://ann@127.0.0.1:{listener.getsockname()[1]}/shop")
        project.write(test_a="def test_a(dbclone): pass\n")
        for command in (
            ("dbclone", "status"),
            ("dbclone", "doctor"),
            ("dbclone", "prepare"),
            ("pytest", "-q", "-p", "no:cacheprovider"),
        ):
            done = project.run(*command, PGPASSWORD="s3cr3t")
            assert "the password in PGPASSWORD is not sent" in done.stdout + done.stderr
            assert done.returncode != 0
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_header_of_a_run_says_it(project: Project) -> None:
    """S24, S8, S25."""
    words = ("--collect-only", "-q", "--co", "-v")
    said = project.pytest(*words, timeout=120, DBCLONE_URL="postgresql://ann:s3cr3t@h:1/x").stdout
    assert (
        f"dbclone: project {project.name}, server at host h, port 1, user ann (from the"
        f" environment variable DBCLONE_URL)" in said
    )
    said = project.pytest(*words, timeout=120, **{**PG, "PGHOST": "db\x1b[2J"}).stdout
    assert "server at host db\\x1b[2J, port 5433, user ann (from PG variables)" in said
    assert "s3cr3t" not in said
