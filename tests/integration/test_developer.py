"""What a developer has on the tests' servers and beside their folders is compared afterwards, and
the comparison can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from dbclone.server.server import Server

from .. import developer
from ..oracle import differences

ROOT = Path(__file__).parents[2]
#: What may happen to a database: where it is run, the statement, and what the comparison then names.
TOUCHES = {
    "a row": ("second_shop_dev", "UPDATE post SET text = 'x' WHERE id = 7", "table public.post"),
    "a row, to the same": (
        "second_shop_dev",
        "UPDATE post SET text = text WHERE id = 9",
        "versions of public.post",
    ),
    "a row more": (
        "second_suite",
        "INSERT INTO \"user\" (name) VALUES ('ann')",
        "second_suite: sequence public.user_id_seq",
    ),
    "a row more, undone": (
        "second_shop_dev",
        "BEGIN; INSERT INTO users (name) VALUES ('ann'); ROLLBACK",
        "public.users_id_seq",
    ),
    "a row locked": (
        "second_shop_dev",
        "SELECT FROM person FOR UPDATE",
        "versions of public.person",
    ),
    "a row gone": (
        "dbclone_second_shopdev",
        "DELETE FROM users WHERE name = 'bea'",
        "dbclone_second_shopdev: table public.users",
    ),
    "a row that its policy hides": (
        "second_shop_dev",
        "DELETE FROM audit.entry WHERE day = '2020-03-01'",
        "table audit.entry",
    ),
    "a table emptied": ("second_shop_dev", "TRUNCATE audit.event", "place of audit.event_2020"),
    "a table written anew": (
        "second_shop_dev",
        "VACUUM FULL audit.scratch",
        "place of audit.scratch",
    ),
    "a table": ("second_shop_dev", "CREATE TABLE more ()", "table public.more"),
    "a large object": ("second_shop_dev", "SELECT lo_put(4242, 0, 'A')", "large object 4242"),
    "a sequence": (
        "second_shop_dev",
        "SELECT setval('audit.invoice', 500)",
        "sequence audit.invoice",
    ),
    "a function": (
        "second_shop_dev",
        "ALTER FUNCTION audit.noted() SET work_mem = '3MB'",
        "second_shop_dev: functions",
    ),
    "a policy": (
        "second_shop_dev",
        "ALTER TABLE audit.entry NO FORCE ROW LEVEL SECURITY",
        "second_shop_dev: relations",
    ),
    "a materialized view": (
        "second_shop_dev",
        "REFRESH MATERIALIZED VIEW audit.per_day",
        "place of audit.per_day",
    ),
    "a comment": ("second_shop_dev", "COMMENT ON TABLE post IS 'x'", "second_shop_dev: comments"),
    "a publication": (
        "second_shop_dev",
        "DROP PUBLICATION everything",
        "second_shop_dev: publications",
    ),
    "a grant": (
        "second_shop_dev",
        'REVOKE SELECT ON "user" FROM second_reader',
        "second_shop_dev: relations",
    ),
    "a comment of a database": (
        "postgres",
        "COMMENT ON DATABASE second_shop_dev IS NULL",
        "database second_shop_dev",
    ),
    "a limit": (
        "postgres",
        "ALTER DATABASE second_shop_dev CONNECTION LIMIT 8",
        "database second_shop_dev",
    ),
    "a setting": (
        "postgres",
        "ALTER DATABASE second_shop_dev RESET work_mem",
        "settings of all roles in second_shop_dev",
    ),
    "a setting of a role": (
        "postgres",
        "ALTER ROLE second_developer RESET ALL",
        "settings of second_developer in all databases",
    ),
    "a setting of a role there": (
        "postgres",
        "ALTER ROLE second_developer IN DATABASE second_shop_dev SET jit = off",
        "settings of second_developer in second_shop_dev",
    ),
    "a role": ("postgres", "ALTER ROLE second_developer CREATEDB", "role second_developer"),
    "a member": ("postgres", "REVOKE second_reader FROM second_developer", "role second_reader"),
    "the template opened": (
        "postgres",
        "ALTER DATABASE dbclone_second_shopdev_t_0123456789ab ALLOW_CONNECTIONS true",
        "_t_0123456789ab",
    ),
    "another's name": (
        "postgres",
        "ALTER DATABASE dbclone_second_shopdev RENAME TO second_gone",
        "database dbclone_second_shopdev",
    ),
    "another's name, back": (
        "postgres",
        "ALTER DATABASE second_gone RENAME TO dbclone_second_shopdev",
        "database dbclone_second_shopdev",
    ),
    "one dropped": (
        "postgres",
        "DROP DATABASE second_suite",
        "database second_suite: is new      (not there)",
    ),
}


@pytest.fixture(scope="module")
def second(server: Server) -> Iterator[developer.Databases]:
    """Another developer on the same server, whose databases may be touched."""
    found = developer.Databases(server.dsn.url, "second_")
    found.plant("a comment")
    yield found
    found.remove()


def test_what_nobody_touches_is_found_as_it_was(second: developer.Databases) -> None:
    assert second.changes() == ""
    parts = {
        key.partition(": ")[2].split(" ")[0]
        for key in second.before
        if key.startswith("second_shop_dev: ")
    }
    assert {
        "table",
        "sequence",
        "large",
        "place",
        "versions",
        "functions",
        "policies",
        "publications",
        "events",
    } <= parts


@pytest.mark.parametrize("touch", TOUCHES)
def test_whatever_is_touched_is_named(second: developer.Databases, touch: str) -> None:
    database, statement, named = TOUCHES[touch]
    with psycopg.connect(second.at(database), autocommit=True) as connection:
        connection.execute(statement.encode())
    before, second.before = second.before, second.state()
    assert named in differences(before, second.before)


def unwritable(top: Path) -> None:
    (top / "data").chmod(0o500)


def later(top: Path) -> None:
    os.utime(top / "to nothing", (1, 1), follow_symlinks=False)


def relink(top: Path) -> None:
    (top / "to a file").unlink()
    (top / "to a file").symlink_to("log")


def rewrite(path: Path) -> None:
    info = path.stat()
    path.write_text(path.read_text().upper())
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


FILE_TOUCHES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda top: (top / "letter.txt").write_text("Dear Bob,"), "letter.txt"),
    "content, as long and as old": (lambda top: rewrite(top / "log"), "log"),
    "mode": (unwritable, "data"),
    "mode above": (lambda top: top.parent.chmod(0o777), "above: "),
    "time of a link": (later, "to nothing"),
    "target": (relink, "to a file"),
    "one more name": (lambda top: os.link(top / "keep", top / "kept"), "keep"),
    "one more": (lambda top: (top / "data" / "base" / "new").touch(), "new"),
    "one less": (lambda top: (top / "postmaster.pid").unlink(), "postmaster.pid"),
    "renamed": (lambda top: (top / "data").rename(top / "data.old"), "PG_VERSION"),
    "gone": (shutil.rmtree, "letter.txt"),
}


@pytest.mark.parametrize("touch", FILE_TOUCHES)
def test_whatever_file_is_touched_is_named(tmp_path: Path, touch: str) -> None:
    change, named = FILE_TOUCHES[touch]
    with pytest.raises(developer.Touched, match=named), developer.files(tmp_path):
        change(tmp_path / "accounts")
    assert not (tmp_path / "accounts").exists()


def test_what_happens_beside_a_users_files_is_nobodys_matter(tmp_path: Path) -> None:
    with developer.files(tmp_path, tmp_path / "accounts" / "data"):
        (tmp_path / "more").mkdir()


@pytest.mark.parametrize("touch", ["nothing", "a row", "a file"])
def test_a_run_of_our_tests_that_touches_a_developers_things_fails(
    tmp_path: Path, options: dict[str, str], touch: str
) -> None:
    """The sample application that nothing leads to a clone writes to its own database, in silence."""
    (tmp_path / "test_it.py").write_text(
        f"""
import pytest
from tests import developer

def test_it(project, cache):
    if {touch!r} == "a row":
        import sys
        sys.path.insert(0, str(project.folder))
        import models
        models.User.create(name="ann")
        models.db.close()
    elif {touch!r} == "a file":
        (cache.parent / "accounts" / "letter.txt").chmod(0o600)
"""
    )
    words = [
        "-q",
        "-p",
        "tests.conftest",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
        "--basetemp",
        str(tmp_path / "base"),
    ]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TEST_BINARIES": options.get("binaries", "")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env={key: value for key, value in environ.items() if value},
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == (0 if touch == "nothing" else 1), output
    if touch != "nothing":
        assert "1 passed, 1 error" in output
        assert (
            "shop_dev: table public.user" if touch == "a row" else "accounts/letter.txt"
        ) in output


def test_whole_commands_are_watched_as_tests_are(tmp_path: Path) -> None:
    """As CI does it: what was planted is written down, and the comparison of another process fails
    if it differs."""
    record = tmp_path / "record.json"

    def run(act: str, *more: str | Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "tests.developer", act, record, *more]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)

    for touched in (False, True):
        shutil.rmtree(tmp_path / "accounts", ignore_errors=True)
        assert run("plant", "--folder", tmp_path).returncode == 0
        beside = [
            Path(path)
            for path in json.loads(record.read_text())["files"]
            if Path(path).parent != tmp_path
        ]
        assert beside
        assert all(path.is_dir() for path in beside)
        if touched:
            (tmp_path / "accounts" / "keep").chmod(0o600)
        done = run("compare")
        assert (done.returncode, "accounts/keep" in done.stdout) == (int(touched), touched), (
            done.stdout + done.stderr
        )
        assert not any(path.exists() for path in beside)
