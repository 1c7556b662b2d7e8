"""Every error that dbclone raises, in PostgreSQL's own three parts: a message, a DETAIL and a HINT.

Error
├── SettingsError                 missing, unknown or contradictory settings
├── ServerError
│   ├── ServerNotFound            nothing to connect to and nothing to start
│   ├── PermissionMissing         the role lacks a privilege
│   └── OutOfConnections          the server has no connection left for us
├── TemplateError
│   ├── BuildFailed               the project's own schema or seed raised
│   └── BuildTimeout              somebody else has been building for too long
├── NotOwned                       no proof that dbclone made this database: left alone
└── ResetError
    ├── ResetBlocked              another session holds a lock that the reset needs
    ├── WriteEscaped              a test wrote where its reset does not reach
    ├── NotIsolated               the database handle was used where nothing undoes what is written
    ├── SandboxLimit              a statement or an order of transactions that no savepoint imitates
    └── KeptTableReferenced       a table to keep references one to empty

The wording follows the Error Message Style Guide of the PostgreSQL documentation: the message is
one line in lower case with names first, DETAIL says why and where a value came from, HINT says
literally what to do.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable


class Error(Exception):
    """Base of every dbclone error.

    Arguments: `message`, one line saying what happened; `detail`, whole sentences saying why;
    `hint`, what to do next. All three survive pickling, because pytest-xdist sends errors between
    processes.
    """

    __module__ = "dbclone"

    def __init__(self, message: str, detail: str = "", hint: str = "") -> None:
        super().__init__(message, detail, hint)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.detail:
            lines.append("DETAIL:  " + self.detail.replace("\n", "\n         "))
        if self.hint:
            lines.append("HINT:  " + self.hint.replace("\n", "\n       "))
        return printable("\n".join(lines))


class SettingsError(Error):
    """A setting is missing, unknown, of the wrong type, or contradicts another."""

    __module__ = "dbclone"


class ServerError(Error):
    """The server cannot be reached, or cannot be used as it is."""

    __module__ = "dbclone"


class ServerNotFound(ServerError):
    """There is nothing to connect to and nothing to start."""

    __module__ = "dbclone"


class PermissionMissing(ServerError):
    """The role lacks a privilege; the hint is the GRANT or ALTER ROLE that gives it."""

    __module__ = "dbclone"


class OutOfConnections(ServerError):
    """The server refuses further connections."""

    __module__ = "dbclone"


class TemplateError(Error):
    """A template cannot be built, found or copied."""

    __module__ = "dbclone"


class BuildFailed(TemplateError):
    """The project's own schema or seed raised; its exception is `__cause__`. No template is left
    behind.

    Where there is a password that it could show, its traceback is text in the DETAIL instead, with
    the password masked.
    """

    __module__ = "dbclone"


class BuildTimeout(TemplateError):
    """Another process has been building the same template for longer than `build_timeout`."""

    __module__ = "dbclone"


class NotOwned(Error):
    """There is no proof that dbclone made this database, so it is left alone."""

    __module__ = "dbclone"


class ResetError(Error):
    """A test's writes could not be undone, or could not be contained."""

    __module__ = "dbclone"


class ResetBlocked(ResetError):
    """Another session holds a lock that the reset needs."""

    __module__ = "dbclone"


class WriteEscaped(ResetError):
    """A test wrote where its reset does not reach."""

    __module__ = "dbclone"


class NotIsolated(ResetError):
    """The application's database handle was used where nothing isolates it.
    It has not been connected."""

    __module__ = "dbclone"


class SandboxLimit(ResetError):
    """The application asked for something that savepoints inside one transaction cannot imitate.

    Not a `psycopg.Error` on purpose: an application's own error handling must not swallow it.
    """

    __module__ = "dbclone"


class KeptTableReferenced(ResetError):
    """A table that is to be kept references one that is to be emptied."""

    __module__ = "dbclone"


def printable(text: str) -> str:
    """Return `text` with every character that a terminal would obey, or could not print, written as
    an escape; line ends stay.

    Names come from a project, a server or whoever uses that server; ESC in one of them could
    rewrite what a person reads.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def encodable(text: str) -> str:
    """Return `text` with what no encoding has, such as a byte of a path that is no text, written as
    an escape."""
    return text.encode(errors="backslashreplace").decode()


def safe_str(error: BaseException) -> str:
    """Return the text of any exception, also of one that cannot be printed."""
    try:
        return str(error)
    except Exception:
        return "(it cannot be printed)"


def redacted(error: BaseException, mask: Callable[[str], str]) -> BaseException:
    """Return `error` as it may be shown: itself if there is nothing to hide (`mask` is `str`), else
    an error of ours in its place.

    That one has the masked parts of an error of ours, or the traceback of any other as masked text,
    and no frames: pytest prints their variables on demand, and in those a secret may be, which
    nobody can find without printing all of them.
    """
    if mask is str:
        return error
    if isinstance(error, Error) and type(error).__init__ is Error.__init__:
        return type(error)(mask(error.message), mask(error.detail), mask(error.hint))
    first = (mask(safe_str(error)).splitlines() or [""])[0]
    trace = mask("".join(traceback.format_exception(error))).strip()
    return BuildFailed(
        f"{type(error).__name__}: {first}",
        trace,
        "Correct what raised it; no template was left behind.",
    )


def shown_cause(error: BaseException, mask: Callable[[str], str]) -> BaseException | None:
    """Return `error` as the cause of one of ours, or None if what is printed of it would show what
    `mask` hides."""
    text = "".join(traceback.format_exception(error))
    return error if mask(text) == text else None
