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
├── NotOurs                       no proof that dbclone made this database: left alone
└── ResetError
    ├── ResetBlocked              another session holds a lock that the reset needs
    ├── WriteEscaped              a test wrote where its reset does not reach
    ├── NotIsolated               the database handle was used where nothing undoes what is written
    ├── SandboxLimit              a statement or an order of transactions that savepoints cannot imitate
    └── KeptTableReferenced       a table to keep references one to empty

The wording follows the Error Message Style Guide of the PostgreSQL documentation: the message is one line in lower case with
names first, DETAIL says why and where a value came from, HINT says literally what to do.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType


class Error(Exception):
    """Base of every dbclone error.

    Arguments: `message`, one line saying what happened; `detail`, whole sentences saying why; `hint`, what to do next. All three
    survive pickling, because pytest-xdist sends errors between processes.
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
    """The project's own schema or seed raised; its exception is `__cause__`. No template is left behind.

    Where that exception shows a password, a stand-in made by `masked` is the cause: of its type, with its text and its traceback.
    """

    __module__ = "dbclone"


class BuildTimeout(TemplateError):
    """Another process has been building the same template for longer than `build_timeout`."""

    __module__ = "dbclone"


class NotOurs(Error):
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
    """The application's database handle was used where nothing isolates it. It has not been connected."""

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
    """Return `text` with every character that a terminal would obey, or could not print, written as an escape; line ends stay.

    Names come from a project, a server or whoever uses that server; ESC in one of them could rewrite what a person reads.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def encodable(text: str) -> str:
    """Return `text` with what no encoding has, such as a byte of a path that is no text, written as an escape."""
    return text.encode(errors="backslashreplace").decode()


def said(error: BaseException) -> str:
    """Return the text of any exception, also of one that cannot be printed."""
    try:
        return str(error)
    except Exception:
        return "(it cannot be printed)"


def masked(error: BaseException, mask: Callable[[str], str], variables: bool = False) -> BaseException:
    """Return `error` as it may be shown: itself, unless it or one that it is chained to shows what `mask` hides.

    Then the answer is a stand-in, and so is all that it is chained to: ours are made anew from their masked parts; of any other, an
    instance of a subclass that prints as the original would, masked, without its attributes, because they may hold anything.
    Tracebacks stay, unless a line of source in them shows a secret; of a group of exceptions only the group stays.

    Arguments: `variables`, take out the frames of which a variable shows a secret, because pytest prints variables on demand.
    """
    for found in _chain(error) if variables else ():
        found.__traceback__ = _frames(found.__traceback__, mask)
    shows = any(mask(text) != text for found in _chain(error) for text in [_told(found), _source(found)])
    return _stand_in(error, mask, {}) if shows else error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that a traceback could print along with it, each once."""
    waiting, seen = [error], set()
    while waiting:
        found = waiting.pop()
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [e for e in (found.__cause__, found.__context__, *getattr(found, "exceptions", ())) if _is_error(e)]


def _is_error(thing: object) -> bool:
    return isinstance(thing, BaseException)


def _told(error: BaseException) -> str:
    """Return all that an exception says of itself; what cannot be said is left out."""
    told = []
    for thing in (error, *error.args, *vars(error).values(), *getattr(error, "__notes__", ())):
        for say in (str, repr):
            with contextlib.suppress(Exception):
                told.append(say(thing))
    return "\n".join(told)


def _frames(trace: TracebackType | None, mask: Callable[[str], str]) -> TracebackType | None:
    """Return a traceback without the frames in which a variable shows a secret."""
    kept = []
    while trace is not None:
        if not any(_shows(value, mask) for value in trace.tb_frame.f_locals.values()):
            kept.append(trace)
        trace = trace.tb_next
    found = None
    for entry in reversed(kept):
        found = TracebackType(found, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return found


def _shows(value: object, mask: Callable[[str], str]) -> bool:
    if isinstance(value, BaseException):
        return False  # what it says is looked at in the chain; one that is only mentioned is masked where it is printed
    try:
        text = repr(value)
    except Exception:
        return False  # then nobody else can print it either
    return mask(text) != text


def _source(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__))


def _stand_in(error: BaseException, mask: Callable[[str], str], made: dict[int, BaseException]) -> BaseException:
    """Return a stand-in for one exception, with stand-ins for those it is chained to; `made` are those that there are already."""
    if id(error) in made:
        return made[id(error)]
    if isinstance(error, Error) and type(error).__init__ is Error.__init__:
        found: BaseException = type(error)(mask(error.message), mask(error.detail), mask(error.hint))
    else:
        found = _of_type(error, mask)
    made[id(error)] = found
    notes = [mask(str(note)) for note in getattr(error, "__notes__", ())]
    if notes:
        found.__notes__ = notes  # type: ignore[attr-defined]  # in Python 3.10 nobody looks there
    if error.__cause__ is not None:
        found.__cause__ = _stand_in(error.__cause__, mask, made)
    if error.__context__ is not None:
        found.__context__ = _stand_in(error.__context__, mask, made)
    found.__suppress_context__ = error.__suppress_context__
    source = _source(error)
    return found.with_traceback(error.__traceback__ if mask(source) == source else None)


def _of_type(error: BaseException, mask: Callable[[str], str]) -> BaseException:
    """Return an instance of a subclass of an exception's type, or of Exception where that has no such instance."""
    kind, text = type(error), mask(said(error))
    # `__reduce__`: a class made here cannot be found by whoever unpickles it.
    body = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__str__": lambda self: text,
        "__repr__": lambda self: f"{kind.__name__}({text!r})",
        "__reduce__": lambda self: (Exception, (f"{kind.__name__}: {text}",)),
    }
    for base in (kind, Exception):
        try:
            made = type(kind.__name__, (base,), body)
            found: BaseException = made.__new__(made)  # type: ignore[call-overload]  # mypy takes it for a metaclass
            if type(found) is made:
                found.args = (text,)
                return found
        except Exception:
            continue
    return Exception(text)
