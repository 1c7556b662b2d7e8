"""Where one SQL statement ends and the next begins, and which ones control transactions. Pure text, no connection.

The rules are those of psql and of the lexical structure described in the PostgreSQL documentation (sql-syntax-lexical): quotes,
dollar quotes, nested comments, parentheses, and the bodies of SQL-standard functions (BEGIN ATOMIC … END).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<estring>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
    | (?P<string>'(?:[^']|'')*(?:'|\Z))
    | (?P<ident>"(?:[^"]|"")*(?:"|\Z))
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<end>;)
    | (?P<open>[(])
    | (?P<close>[)])
    | (?P<other>\$\d+|\d+|.)
    """,
    re.X | re.S,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_COPY_FROM_STDIN = re.compile(r"^COPY\b.*\bFROM\s+STDIN\b", re.I | re.S)
_MIGHT_CONTROL = re.compile(r"\b(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE)\b", re.I)


@dataclass(frozen=True)
class Statement:
    """One statement: its text without the semicolon, the line (from 1) it starts on, and the data lines of a COPY FROM STDIN."""

    text: str
    line: int
    data: str | None = None


@dataclass(frozen=True)
class Control:
    """A statement that controls transactions.

    `verb` is begin, commit, rollback, savepoint, release, rollback_to or two_phase; `name` the savepoint's name as the server
    folds it; `modes` the transaction modes of BEGIN in upper case; `chain` whether AND CHAIN was said.
    """

    verb: str
    name: str = ""
    modes: str = ""
    chain: bool = False


def _tokens(text: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, start, end); comments come as `space`, quoted text whole."""
    at = start
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None  # `other` takes any character
        kind, end = str(match.lastgroup), match.end()
        if kind == "block":
            depth, end = 1, at + 2
            while depth:
                edge = _COMMENT_EDGE.search(text, end)
                if edge is None:
                    end = len(text)
                    break
                depth += 1 if edge[0] == "/*" else -1
                end = edge.end()
            kind = "space"
        elif kind == "line":
            kind = "space"
        elif kind == "dollar":
            closing = text.find(match[0], end)
            end = len(text) if closing < 0 else closing + len(match[0])
            kind = "string"
        yield kind, at, end
        at = end


def _defines_routine(words: list[str]) -> bool:
    """Whether the words so far belong to CREATE [OR REPLACE] FUNCTION or PROCEDURE, in which BEGIN opens a body."""
    head = [w for w in words[:4] if w not in ("OR", "REPLACE")]
    return head[:1] == ["CREATE"] and head[1:2] in (["FUNCTION"], ["PROCEDURE"])


def split(text: str) -> Iterator[Statement]:
    """Yield the statements of an SQL script in order, empty ones left out.

    psql's `\\restrict` and `\\unrestrict` lines, which pg_dump writes, are passed over; any other backslash command is yielded as
    a Statement whose text starts with the backslash, for the caller to refuse. COPY … FROM STDIN takes the lines up to `\\.`.
    """
    at = 0
    while at < len(text):
        begin: int | None = None
        depth = body = 0
        words: list[str] = []
        end = next_at = len(text)
        for kind, start, stop in _tokens(text, at):
            if kind == "space":
                continue
            if begin is None and text[start] == "\\":
                newline = text.find("\n", start)
                next_at = len(text) if newline < 0 else newline + 1
                begin, end = start, next_at
                break
            if kind == "end" and depth <= 0 and not body:
                end, next_at = start, stop
                break
            if begin is None:
                begin = start
            if kind == "open":
                depth += 1
            elif kind == "close":
                depth -= 1
            elif kind == "word":
                word = text[start:stop].upper()
                if len(words) < 5:
                    words.append(word)
                if _defines_routine(words):
                    if word == "BEGIN" or (word == "CASE" and body):
                        body += 1
                    elif word == "END" and body:
                        body -= 1
        if begin is not None:
            found = text[begin:end].strip()
            line = text.count("\n", 0, begin) + 1
            if not found.startswith(("\\restrict ", "\\unrestrict ")):
                data = None
                if _COPY_FROM_STDIN.match(found):
                    data, next_at = _copy_data(text, next_at)
                yield Statement(found, line, data)
        at = next_at


def _copy_data(text: str, at: int) -> tuple[str, int]:
    """Return the data lines after a COPY FROM STDIN, and where the script goes on behind `\\.`."""
    newline = text.find("\n", at)
    start = len(text) if newline < 0 else newline + 1
    done = re.compile(r"^\\\.[ \t]*\r?(?:\n|\Z)", re.M).search(text, start)
    return (text[start:], len(text)) if done is None else (text[start : done.start()], done.end())


def _significant(text: str) -> list[str]:
    """Return the tokens of one statement without white space and comments; words in upper case, quoted names unquoted."""
    found = []
    for kind, start, stop in _tokens(text):
        token = text[start:stop]
        if kind == "word":
            found.append(token.upper())
        elif kind == "ident":
            found.append('"' + token[1:-1].replace('""', '"'))
        elif kind not in ("space", "end"):
            found.append(token)
    return found


def _fold(token: str) -> str:
    """Return an identifier token as the server stores it: quoted as it is, unquoted in lower case, cut at 63 bytes."""
    name = token[1:] if token.startswith('"') else token.lower()
    return name.encode()[:63].decode(errors="ignore")


@lru_cache(maxsize=512)
def control(text: str) -> Control | None:
    """Return what one statement does to the transaction, or None if it is an ordinary statement."""
    words = _significant(text)
    if not words:
        return None
    verb, rest = words[0], words[1:]
    if verb == "START" and rest[:1] == ["TRANSACTION"]:
        return Control("begin", modes=" ".join(rest[1:]))
    if verb == "PREPARE" and rest[:1] == ["TRANSACTION"]:
        return Control("two_phase")
    if verb in ("COMMIT", "ROLLBACK") and rest[:1] == ["PREPARED"]:
        return Control("two_phase")
    if rest[:1] in (["WORK"], ["TRANSACTION"]) and verb in ("BEGIN", "COMMIT", "END", "ROLLBACK", "ABORT"):
        rest = rest[1:]
    if verb == "BEGIN":
        return Control("begin", modes=" ".join(rest))
    if verb == "ROLLBACK" and rest[:1] == ["TO"]:
        rest = rest[2:] if rest[1:2] == ["SAVEPOINT"] and len(rest) > 2 else rest[1:]
        return Control("rollback_to", _fold(rest[0])) if rest else None
    if verb in ("COMMIT", "END"):
        return Control("commit", chain=rest[:2] == ["AND", "CHAIN"])
    if verb in ("ROLLBACK", "ABORT"):
        return Control("rollback", chain=rest[:2] == ["AND", "CHAIN"])
    if verb == "SAVEPOINT" and rest:
        return Control("savepoint", _fold(rest[0]))
    if verb == "RELEASE" and rest:
        rest = rest[1:] if rest[0] == "SAVEPOINT" and len(rest) > 1 else rest
        return Control("release", _fold(rest[0]))
    return None


@lru_cache(maxsize=512)
def controls(text: str) -> tuple[tuple[str, Control | None], ...]:
    """Return the pieces of a query string with what each does to the transaction; empty if none of them does anything to it.

    The usual case, a string without any such word in it, costs one regular-expression search.
    """
    if not _MIGHT_CONTROL.search(text):
        return ()
    pieces = tuple((s.text, control(s.text)) for s in split(text))
    return pieces if any(c is not None for _, c in pieces) else ()
