"""Folders of ours: made with a mark inside that names their maker, and written in, emptied and
removed through descriptors only.

A folder is ours if the mark in it names this very folder: its path, as it was made, and its inode.
A copy, a folder that was moved, and one that somebody put in our place have another one, and are
left alone. Nothing is removed or renamed without that proof.

Root's server runs as another account, which owns its folders and may at any moment put a link in
the place of whatever is in them. So nothing there is reached by a path: each part is opened by
itself, and no link is followed in a folder of that account (openat(2), "Rationale for openat() and
other directory file descriptor APIs").
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...errors import ServerError
from ...process.clock import wall

MARK = "dbclone.json"
_READ = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# What opening a link or a file as a folder says
_NOT_A_FOLDER = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


@dataclass(frozen=True)
class Account:
    """An operating-system account: `uid`, `gid` and `name`; `other` says whether it is not the one
    that we run as."""

    uid: int
    gid: int
    name: str
    other: bool

    @property
    def popen(self) -> dict[str, Any]:
        """Keyword arguments for subprocess that make a program run as this account,
        without a shell."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.other else {}


def own_uid() -> int:
    """Return the user id that we run as, -1 where there are none."""
    return os.getuid() if sys.platform != "win32" else -1


# Who may be in a folder
# --------------------------------------------------------------------------------------------------


def check_private(path: Path, account: Account | None = None) -> None:
    """Refuse a folder that is not ours alone, or that of `account`. Raises ServerError, and OSError
    if there is no such folder."""
    _check(path, path.lstat(), account)


def check_place(path: Path, account: Account | None = None) -> None:
    """Refuse a user's folder as the place for one of ours if others could exchange what is in it.

    Raises ServerError, and OSError if there is no such folder.
    """
    found = path.stat()
    owners = {0, own_uid(), account.uid if account is not None else own_uid()}
    problem = ""
    if not stat.S_ISDIR(found.st_mode):
        problem = "it is not a folder"
    elif own_uid() >= 0 and found.st_uid not in owners:
        problem = f"it belongs to user id {found.st_uid}, not {own_uid()}"
    elif own_uid() >= 0 and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        problem = f"others can write in it (mode {stat.S_IMODE(found.st_mode):o})"
    if problem:
        raise _not_private(path, problem)


def _check(path: Path, found: os.stat_result, account: Account | None) -> None:
    owner, problem = account.uid if account is not None else own_uid(), ""
    if not stat.S_ISDIR(found.st_mode):
        problem = "it is not a folder of its own"
    elif own_uid() >= 0 and found.st_uid != owner:
        problem = f"it belongs to user id {found.st_uid}, not {owner}"
    elif own_uid() >= 0 and stat.S_IMODE(found.st_mode) & 0o077:
        problem = f"others can enter it (mode {stat.S_IMODE(found.st_mode):o})"
    if problem:
        raise _not_private(path, problem)


def _not_private(path: Path, problem: str) -> ServerError:
    return ServerError(
        f"the folder {path} is not private: {problem}",
        "dbclone does not use a folder that somebody else may have prepared.",
        "Remove it, or chmod 700 it if it is yours, or set cache_dir or data_dir to another place.",
    )


# Descriptors
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reach_folder(path: Path, account: Account | None, last: int = 0) -> Iterator[int]:
    """Give a descriptor of a folder, reached so that the server's account cannot lead us elsewhere.

    Arguments: `last`, flags of open(2) for the last part of the path. Raises OSError.
    """
    if account is None or not account.other:
        folder = os.open(path, _READ | last)
    else:
        folder = os.open("/", _READ)
        parts = path.absolute().parts[1:]
        for number, part in enumerate(parts):
            flags = last if number == len(parts) - 1 else 0
            if os.fstat(folder).st_uid == account.uid:
                flags |= _NO_LINK
            try:
                inner = os.open(part, _READ | flags, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def open_private(path: Path, account: Account | None = None) -> Iterator[int]:
    """Give a descriptor of a folder that is ours alone, or `account`'s: what it leads to stays that
    folder, whatever its name does.

    Raises ServerError if it is somebody else's, a link, or no folder, and OSError.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(reach_folder(path, account, _NO_LINK))
        except OSError as error:
            if error.errno in _NOT_A_FOLDER:
                raise _not_private(path, "it is not a folder of its own") from None
            raise
        _check(path, os.fstat(folder), account)
        yield folder


@contextlib.contextmanager
def inside(folder: int, name: str) -> Iterator[int]:
    """Give a descriptor of a folder in an open one.
    Raises OSError, also if there is a link of that name."""
    found = os.open(name, _READ | _NO_LINK, dir_fd=folder)
    try:
        yield found
    finally:
        os.close(found)


def read_own(path: Path | str, most: int = 2**20, folder: int | None = None) -> bytes:
    """Return the last `most` bytes of a file in a folder that may be another account's, where a
    link or a pipe may wait for root.

    Arguments: `folder`, the descriptor that `path` starts from. Raises OSError.
    """
    with os.fdopen(
        os.open(path, os.O_RDONLY | _NO_LINK | os.O_NONBLOCK, dir_fd=folder), "rb"
    ) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        file.seek(max(0, found.st_size - most))
        return file.read(most)


def open_own(path: Path | str, folder: int | None = None, shown: Path | None = None) -> IO[bytes]:
    """Open a file for writing from its start, made if it is not there; no link, no pipe and no
    second name of another file.

    Arguments: `folder`, the descriptor that `path` starts from, which one of another account needs;
    `shown`, the whole path. Raises ServerError if something else is there, and OSError.
    """
    refusal = ServerError(
        f"{shown or path} is not a file of ours",
        "dbclone does not write through a link or a pipe that somebody else may have prepared.",
        "Remove it.",
    )
    try:
        flags = os.O_WRONLY | os.O_CREAT | _NO_LINK | os.O_NONBLOCK
        file = os.fdopen(os.open(path, flags, 0o600, dir_fd=folder), "wb")
    except OSError as error:
        # A link; a pipe that nobody reads
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise refusal from None
        raise
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        file.close()
        raise refusal
    os.ftruncate(file.fileno(), 0)
    return file


# Marks
# --------------------------------------------------------------------------------------------------


def mark(folder: int, path: Path, kind: str, **facts: str) -> None:
    """Write into an open folder that dbclone made it.

    Arguments: `path`, the name that it has, or is about to be given; `facts`, what else to say.
    Raises OSError.
    """
    said = {
        "made by": "dbclone",
        "kind": kind,
        "uid": own_uid(),
        "path": str(path),
        "inode": os.fstat(folder).st_ino,
    }
    text = json.dumps({**said, "made": round(wall(), 3), **facts}, indent=1)
    file = os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600, dir_fd=folder)
    with os.fdopen(file, "wb") as opened_file:
        opened_file.write(text.encode())


def facts_of(folder: int) -> dict[str, Any]:
    """Return what the mark in an open folder says; nothing if there is none."""
    try:
        found = json.loads(read_own(MARK, folder=folder))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def foreign(folder: int, path: Path, kind: str) -> str:
    """Return in words why an open folder is not proved to be the one of this kind that we made as
    `path`; empty if it is."""
    found = facts_of(folder)
    if found.get("made by") != "dbclone":
        return f"it has no mark of dbclone ({MARK}) in it"
    if found.get("kind") != kind or found.get("uid") != own_uid():
        return "the mark in it is that of another folder"
    if found.get("path") != str(path) or found.get("inode") != os.fstat(folder).st_ino:
        return f"it was moved or copied: the mark in it is that of {found.get('path')}"
    return ""


# Making and removing
# --------------------------------------------------------------------------------------------------


def private_folder(
    path: Path, account: Account | None = None, kind: str = "folder", **facts: str
) -> Path:
    """Return `path` as a folder that only its owner can enter, made with a mark if it is not there.

    Arguments: `account`, its owner to be (default: ourselves); `kind` and `facts`, for its mark. A
    symbolic link, another owner, or access for others is refused rather than repaired: somebody
    else may have put it there. Raises ServerError.
    """
    try:
        if (
            sys.platform == "win32"
        ):  # where no folder can be opened, and nothing but lock files is kept
            path.mkdir(parents=True, exist_ok=True)
        elif not os.path.lexists(path):
            _make(path, account, kind, facts)
        check_private(path, account)
    except OSError as error:
        raise unusable(path, error) from None
    return path


def unusable(path: Path, error: OSError) -> ServerError:
    """Return our error for a folder that cannot be made, or a file that cannot be written there."""
    message, hint = (
        f"cannot make the folder {path}",
        "Set cache_dir or data_dir to a place you own.",
    )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message, hint = (
            f"no space is left for {path}",
            "Make room there, or set cache_dir or data_dir to another place.",
        )
    elif error.errno == errno.EROFS:
        message, hint = (
            f"cannot write {path}: its file system is read-only",
            "Set cache_dir or data_dir to a place you can write.",
        )
    elif os.path.lexists(path):
        message = f"cannot use {path}"
    return ServerError(message, f"{type(error).__name__}: {error.strerror}.", hint)


def _make(path: Path, account: Account | None, kind: str, facts: dict[str, str]) -> None:
    """Make a folder under a name that nobody looks for, and give it its own when it is whole.
    Whoever is first wins."""
    if not path.parent.exists():
        _make_parents(path.parent, account)
    with reach_folder(path.parent, account) as parent:
        new = f"{path.name[:200]}.{secrets.token_hex(4)}.new"
        os.mkdir(new, 0o700, dir_fd=parent)
        try:
            with inside(parent, new) as folder:
                # Whoever may write in the parent can exchange what has this name; an empty folder
                # of ours is all that they can put there, and handing over that gives nothing away.
                if os.fstat(folder).st_uid != own_uid() or os.listdir(folder):
                    raise OSError(errno.EEXIST, "somebody else is at work there", str(path))
                os.fchmod(folder, 0o700)  # whatever the umask
                mark(folder, path, kind, **facts)
                if account is not None and account.other:
                    os.fchown(folder, account.uid, account.gid)
            os.rename(new, path.name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            _undo(parent, new)
            if error.errno not in (
                errno.ENOTEMPTY,
                errno.EEXIST,
                errno.ENOTDIR,
            ) or not os.path.lexists(path):
                raise  # else somebody was first, and what they made is looked at as any other


def _undo(parent: int, new: str) -> None:
    """Remove a folder that was being made, and has nothing in it but, perhaps, its mark: a full
    disk may have prevented that."""
    with contextlib.suppress(OSError), inside(parent, new) as folder:
        if os.fstat(folder).st_uid == own_uid() and os.listdir(folder) in ([], [MARK]):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(MARK, dir_fd=folder)
            os.rmdir(new, dir_fd=parent)


def _make_parents(path: Path, account: Account | None) -> None:
    """Make the folders above one of ours: of whoever owns the folder that they are in, and nobody
    else's to look into. The server's account has to pass through them."""
    if path.exists():
        return
    _make_parents(path.parent, account)
    with reach_folder(path.parent, account) as parent, contextlib.suppress(FileExistsError):
        os.mkdir(path.name, 0o700, dir_fd=parent)
        if account is not None and account.other:
            with inside(parent, path.name) as folder:
                # As in `_make`: nothing but an empty folder of ours is opened to anybody.
                if os.fstat(folder).st_uid == own_uid() and not os.listdir(folder):
                    os.fchmod(folder, 0o711)


def remove(parent: int, name: str, path: Path, kind: str) -> bool:
    """Remove a folder of ours with all that is in it; return whether it is gone. Without proof that
    we made it it is left alone.

    Arguments: `parent`, the open folder that it is in; `name`, its name there; `path`, the one that
    it was made with. What is mounted in it is left alone too. Raises OSError.
    """
    with inside(parent, name) as folder:
        if foreign(folder, path, kind):
            return False
        device = os.fstat(folder).st_dev
        for _, folders, files, found in os.fwalk(
            ".", topdown=False, follow_symlinks=False, dir_fd=folder
        ):
            if os.fstat(found).st_dev != device:
                continue
            proof = MARK if os.path.samestat(os.fstat(found), os.fstat(folder)) else ""
            for inner in (*(file for file in files if file != proof), *folders):
                with contextlib.suppress(OSError):
                    _remove_name(inner, found)
        if os.listdir(folder) != [MARK]:
            # Somebody still writes there, so what proves that it is ours stays for the next time.
            return False
        os.unlink(MARK, dir_fd=folder)
    os.rmdir(name, dir_fd=parent)
    return True


def _remove_name(name: str, folder: int) -> None:
    """Remove a file, a link, or an emptied folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except (IsADirectoryError, PermissionError):  # what Linux and POSIX say of a folder
        os.rmdir(name, dir_fd=folder)
