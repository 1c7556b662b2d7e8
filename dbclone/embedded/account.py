"""Who the private server runs as, and folders that nobody else can enter.

PostgreSQL refuses to run as root, and containers are root: then the server runs as an account that exists already. Nothing
outside dbclone's own folders is created or changed for it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import ServerError, ServerNotFound
from ..settings import Settings


@dataclass(frozen=True)
class Account:
    """An operating-system account: `uid`, `gid` and `name`; `other` says whether it is not the one that we run as."""

    uid: int
    gid: int
    name: str
    other: bool

    @property
    def popen(self) -> dict[str, Any]:
        """Keyword arguments for subprocess that make a program run as this account, without a shell."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.other else {}


def own_name() -> str:
    """Return the name of the account that we run as, as the server's peer authentication will see it."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ServerNotFound(
            f"no private server can be started: user id {os.getuid()} has no name",
            "PostgreSQL looks its user up in the system's account database, and there is no such entry.",
            "Add the user to /etc/passwd, or set url to a server that is running.",
        ) from None


def server_account() -> Account:
    """Return the account for the private server: our own, or an unprivileged one if we are root.

    Raises ServerNotFound where there is none, and on Windows, where only a running server can be used.
    """
    if sys.platform == "win32":
        raise ServerNotFound(
            "no private server can be started on Windows",
            "dbclone keeps its server private with a unix socket in a folder of yours.",
            "Set url to a server that is running.",
        )
    import pwd

    if os.getuid() != 0:
        return Account(os.getuid(), os.getgid(), own_name(), other=False)
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return Account(found.pw_uid, found.pw_gid, name, other=True)
    raise ServerNotFound(
        "no private server can be started: there is no unprivileged account to run it",
        "We are root, PostgreSQL refuses to run as root, and neither 'postgres' nor 'nobody' exists here.",
        "Create one of them, run as another user, or set url to a server that is running.",
    )


def private_folder(path: Path, account: Account | None = None) -> Path:
    """Return `path` as a folder that only its owner can enter, made if it is not there.

    Arguments: `account`, its owner to be (default: ourselves). A symbolic link, another owner, or access for others is refused
    rather than repaired: somebody else may have put it there. Raises ServerError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            try:
                if account is not None and account.other:
                    os.chown(path, account.uid, account.gid)
                path.chmod(0o700)  # whatever the umask
            except OSError:
                path.rmdir()  # half made, it would be refused for ever
                raise
        check_private(path, account)
    except OSError as error:
        raise ServerError(
            f"cannot make the folder {path}",
            f"{type(error).__name__}: {error.strerror}.",
            "Set cache_dir or data_dir to a place you own.",
        ) from None
    return path


def check_private(path: Path, account: Account | None = None) -> None:
    """Refuse a folder that is not ours alone, or that of `account`. Raises ServerError, and OSError if there is no such folder."""
    owner = account.uid if account is not None else _uid()
    found = path.lstat()
    problem = ""
    if not stat.S_ISDIR(found.st_mode):
        problem = "it is not a folder of its own"
    elif _uid() >= 0 and found.st_uid != owner:
        problem = f"it belongs to user id {found.st_uid}, not {owner}"
    elif _uid() >= 0 and stat.S_IMODE(found.st_mode) & 0o077:
        problem = f"others can enter it (mode {stat.S_IMODE(found.st_mode):o})"
    if problem:
        raise ServerError(
            f"the folder {path} is not private: {problem}",
            "dbclone does not use a folder that somebody else may have prepared.",
            "Remove it, or chmod 700 it if it is yours, or set cache_dir or data_dir to another place.",
        )


def read_own(path: Path, most: int = 2**20) -> bytes:
    """Return the last `most` bytes of a file in a folder that may be another account's, where a link or a pipe may wait for root.

    Raises OSError.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        file.seek(max(0, found.st_size - most))
        return file.read(most)


def open_own(path: Path) -> IO[bytes]:
    """Open a file, for writing from its start, in a folder that may be another account's: a link must not lead root elsewhere.

    Raises ServerError if something else is there, and OSError.
    """
    refusal = ServerError(
        f"{path} is not a file of ours",
        "dbclone does not write through a link or a pipe that somebody else may have prepared.",
        "Remove it.",
    )
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600), "wb")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link; a pipe that nobody reads
            raise refusal from None
        raise
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        file.close()
        raise refusal
    os.ftruncate(file.fileno(), 0)
    return file


def cache_folder(settings: Settings) -> Path:
    """Return the private folder for locks and state: `cache_dir`, the user's cache, or one below the temporary folder if the
    cache cannot be written (an unset HOME, a read-only container)."""
    try:
        return private_folder(settings.cache)
    except (ServerError, RuntimeError):
        if settings.cache_dir or os.access(settings.cache, os.F_OK):
            raise
        return private_folder(Path(tempfile.gettempdir()) / f"dbclone-{_uid()}")


def _uid() -> int:
    return os.getuid() if sys.platform != "win32" else -1
