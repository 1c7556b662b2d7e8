"""Who the private server runs as, and folders that nobody else can enter.

PostgreSQL refuses to run as root, and containers are root: then the server runs as an account that
exists already. Nothing outside dbclone's own folders is created or changed for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from ...errors import ServerError, ServerNotFound
from ...settings import Settings
from .folders import (  # fmt: skip
    MARK,
    Account,
    check_place,
    check_private,
    mark,
    open_own,
    open_private,
    own_uid,
    private_folder,
    read_own,
    unusable,
)

__all__ = [
    "Account", "cache_folder", "check_private", "open_own", "own_name", "private_folder",
    "read_own", "server_account",
]  # fmt: skip


def own_name() -> str:
    """Return the name of the account that we run as,
    as the server's peer authentication will see it."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise ServerNotFound(
            f"no private server can be started: user id {os.getuid()} has no name",
            "PostgreSQL looks its user up in the system's account database, and there is no"
            " such entry.",
            "Add the user to /etc/passwd, or set url to a server that is running.",
        ) from None


def server_account() -> Account:
    """Return the account for the private server: our own, or an unprivileged one if we are root.

    Raises ServerNotFound where there is none, and on Windows, where only a running server can be
    used.
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
        "We are root, PostgreSQL refuses to run as root, and neither 'postgres' nor 'nobody'"
        " exists here.",
        "Create one of them, run as another user, or set url to a server that is running.",
    )


def cache_folder(settings: Settings) -> Path:
    """Return the private folder for locks and state: `cache_dir`, the user's cache, or one below
    the temporary folder if the cache cannot be written (an unset HOME, a read-only container).

    Where `cache_dir` is a folder with files of somebody else's in it, ours is a folder called
    dbclone in that. Raises ServerError.
    """
    try:
        return private_folder(_cache(settings), kind="cache")
    except (ServerError, RuntimeError):
        if settings.cache_dir or os.access(settings.cache, os.F_OK):
            raise
        return private_folder(Path(tempfile.gettempdir()) / f"dbclone-{own_uid()}", kind="cache")


def _cache(settings: Settings) -> Path:
    path = settings.cache
    if not settings.cache_dir or not os.path.lexists(path) or sys.platform == "win32":
        return path
    try:
        check_private(path)
        with open_private(path) as folder:
            if not os.listdir(folder):
                # Somebody who starts beside us was first
                with contextlib.suppress(FileExistsError):
                    mark(folder, path, "cache")
            if MARK in os.listdir(folder):
                return path
    except ServerError:
        try:
            check_place(path)
        except OSError as error:  # a link that leads nowhere
            raise unusable(path, error) from None
        if path.is_symlink() or not os.access(path, os.W_OK | os.X_OK):
            raise
    except OSError as error:
        raise unusable(path, error) from None
    return path / "dbclone"
