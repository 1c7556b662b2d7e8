"""Which pyproject.toml may speak: those of the project's own folders, up to its root, and none that
a stranger can write.

A setting may name a command, so whoever writes the file runs programs as whoever runs the tests.
Apart from settings, because the plugin asks this of every project that it is installed beside.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

NAME = "pyproject.toml"
TABLE = b"tool.dbclone"
_REPOSITORY = (".git", ".hg")
# What pytest takes for the root of a project (its documentation, "Rootdir"),
# and setuptools for a package.
_ROOT = (
    NAME, "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg",
    "setup.py",
)  # fmt: skip


def folders(start: Path) -> list[Path]:
    """Return the folders of the project that `start` is in, from there up to its root.

    That is the nearest folder with a repository; without one, the nearest with what makes a
    project; else `start` itself. A folder above `start` that others may write in, such as /tmp, is
    no project's, nor is what is above it.
    """
    found = [start]
    for folder in start.parents:
        if problem(folder, start):
            break
        found.append(folder)
    for names in (_REPOSITORY, _ROOT):
        for number, folder in enumerate(found):
            if any(os.path.lexists(folder / name) for name in names):
                return found[: number + 1]
    return [start]


def start_of(rootdir: Path, current: Path) -> Path:
    """Return the folder to look from in a run of pytest: its rootdir, unless that is one above the
    current folder which others may write in. pytest takes whoever's pyproject.toml it meets on its
    way up for a root, also past a repository."""
    return current if rootdir in current.parents and problem(rootdir, current) else rootdir


def tables(start: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield (path, text) of each pyproject.toml of the project that may have settings of ours, the
    nearest first."""
    for folder in folders(start):
        try:
            text = (folder / NAME).read_bytes()
        except OSError:
            continue
        # Parsing costs milliseconds that a session without dbclone must not pay.
        if TABLE in text:
            yield folder / NAME, text


def problem(path: Path, start: Path) -> str:
    """Return in words why another user of the machine can write a file or folder; empty if nobody
    can.

    Trusted are root, who runs us, and the owner of `start`: the project is theirs, and whoever runs
    its tests runs their conftest.py anyway (in a container that is often root, in a checkout that
    another user has mounted). So is a group that we are in, or that the project's folder belongs
    to: under umask 002 each user has a group of their own, and a team shares one on purpose.
    """
    if sys.platform == "win32":
        return ""
    try:
        found, first = path.stat(), start.stat()
    except OSError:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, os.getuid(), first.st_uid):
        return f"it belongs to user id {found.st_uid}"
    if mode & stat.S_IWOTH:
        return f"everybody may write it (mode {mode:o})"
    if mode & stat.S_IWGRP and found.st_gid not in (os.getegid(), first.st_gid, *os.getgroups()):
        return f"group {found.st_gid} may write it (mode {mode:o})"
    return ""
