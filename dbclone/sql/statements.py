"""Where one SQL statement ends and the next begins. Pure text, no connection.

The rules are those of psql and of the lexical structure described in the PostgreSQL documentation
(sql-syntax-lexical): quotes, dollar quotes, nested comments, parentheses, and the bodies of
SQL-standard functions (BEGIN ATOMIC … END).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

# Letters of names are what the server takes for them: any character beyond ASCII, and no white
# space but these six. The pattern names those of ASCII that are none: a range up to Unicode's last
# character takes 6 ms to compile, in every process.
_SPACE = " \t\n\r\f\v"
# Nothing here repeats a group: for each repetition of one the engine would keep a record, gigabytes
# for a literal of 20 MB.
_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<estring>[eE]')
    | (?P<string>')
    | (?P<ident>")
    | (?P<dollar>\$(?:[^\x00-@[-^`{-\x7f][^\x00-/:-@[-^`{-\x7f]*)?\$)
    | (?P<word>[^\x00-@[-^`{-\x7f][^\x00-#%-/:-@[-^`{-\x7f]*)
    | (?P<end>;)
    | (?P<open>[(])
    | (?P<close>[)])
    | (?P<other>\$?[0-9]+|.)
    """,
    re.X | re.S,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ESCAPED = re.compile(r"\\.|''|'", re.S)
_DATA_END = re.compile(r"^\\\.[ \t]*\r?(?:\n|\Z)", re.M)
_ROUTINE = re.compile(r"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE) ")
# A server with an encoding of several bytes folds the letters of ASCII and no others.
UPPER, LOWER = (
    str.maketrans(ascii_lowercase, ascii_uppercase),
    str.maketrans(ascii_uppercase, ascii_lowercase),
)


@dataclass(frozen=True)
class Statement:
    """One statement: its text without the semicolon, the line (from 1) it starts on, and the data
    lines of a COPY FROM STDIN."""

    text: str
    line: int
    data: str | None = None


def _quoted(text: str, at: int, quote: str, escapes: bool) -> int:
    """Return where the quoted text ends whose inside starts at `at`: behind its closing quote, or
    at the end of a text without.

    Arguments: `escapes`, whether a backslash takes the next character with it.
    """
    if escapes:
        while match := _ESCAPED.search(text, at):
            at = match.end()
            if match[0] == "'":
                return at
        return len(text)
    while (at := text.find(quote, at) + 1) and text.startswith(quote, at):
        at += 1
    return at or len(text)


def _comment(text: str, at: int) -> int:
    """Return where the block comment ends whose inside starts at `at`; comments nest."""
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(text, at)):
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return len(text) if depth else at


def tokens(text: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, start, end); comments come as `space`, quoted text whole. Time and memory grow
    as the text does, no faster."""
    at = start
    # Whether an E string came last, and a new line since: then a string goes on with it, escapes
    # included.
    escaped = broken = False
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None  # `other` takes any character
        kind, end = str(match.lastgroup), match.end()
        if kind == "space":
            broken = broken or (escaped and ("\n" in match[0] or "\r" in match[0]))
        elif kind == "block":
            kind, end = "space", _comment(text, end)
            escaped = False
        else:
            if kind in ("string", "estring"):
                escaped = kind == "estring" or (escaped and broken)
                kind, end = "string", _quoted(text, end, "'", escaped)
            else:
                escaped = False
                if kind == "ident":
                    end = _quoted(text, end, '"', False)
                elif kind == "dollar":
                    closing = text.find(match[0], end)
                    kind, end = "string", len(text) if closing < 0 else closing + len(match[0])
            broken = False
        yield kind, at, end
        at = end


class _Open:
    """What is known of a statement that has not ended yet."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self.depth = self.body = 0  # parentheses open; BEGIN and CASE open in the body of a routine
        self.head = ""  # its first words, of which only CREATE FUNCTION and COPY matter
        self.words = 0
        self.last = ""  # the last word outside parentheses
        self.routine = self.copy = self.from_stdin = False
        self.curious = True  # whether another word can matter

    def word(self, word: str) -> None:
        """Take note of a word, in upper case."""
        if self.words < 5:
            self.words += 1
            self.head += word + " "
            self.routine = _ROUTINE.match(self.head) is not None
            self.copy = self.head.startswith("COPY ")
            self.curious = self.words < 5 or self.routine or self.copy
        if self.depth > 0:
            return
        if self.routine:
            if word == "BEGIN" or (word == "CASE" and self.body):
                self.body += 1
            elif word == "END" and self.body:
                self.body -= 1
        elif word == "STDIN" and self.last == "FROM" and self.copy:
            self.from_stdin = True
        self.last = word


def split(text: str) -> Iterator[Statement]:
    """Yield the statements of an SQL script in order, empty ones left out.

    A backslash command of psql that begins where a statement could is yielded as a Statement whose
    text starts with the backslash, up to the end of the line; what it is, `reach.command` tells.
    COPY … FROM STDIN takes the lines up to `\\.`.
    """
    at = counted = 0
    line = 1
    while at < len(text):
        now: _Open | None = None
        next_at = len(text)
        for kind, start, stop in tokens(text, at):
            if kind == "space":
                continue
            if now is None:
                if kind == "end":
                    continue
                now = _Open(start)
                # From where the last statement began, so that no line is counted twice.
                line, counted = line + text.count("\n", counted, start), start
                if text[start] == "\\":
                    newline = text.find("\n", start)
                    next_at = len(text) if newline < 0 else newline + 1
                    yield Statement(text[start:next_at].strip(), line)
                    now = None
                    break
            if kind == "word" and now.curious:
                now.word(text[start:stop].translate(UPPER))
            elif kind == "open":
                now.depth += 1
            elif kind == "close":
                now.depth -= 1
            elif kind == "end" and now.depth <= 0 and not now.body:
                if now.from_stdin:
                    data, next_at = _copy_data(text, stop)
                    yield Statement(text[now.begin : start].rstrip(_SPACE), line, data)
                    now = None
                    break
                yield Statement(text[now.begin : start].rstrip(_SPACE), line)
                now = None
        if now is not None:
            yield Statement(text[now.begin :].rstrip(_SPACE), line, "" if now.from_stdin else None)
        at = next_at


def _copy_data(text: str, at: int) -> tuple[str, int]:
    """Return the data lines after a COPY FROM STDIN, and where the script goes on behind `\\.`."""
    newline = text.find("\n", at)
    start = len(text) if newline < 0 else newline + 1
    done = _DATA_END.search(text, start)
    return (text[start:], len(text)) if done is None else (text[start : done.start()], done.end())


def fold(token: str) -> str:
    """Return an identifier token as the server stores it: quoted as it is, unquoted in lower case,
    cut at 63 bytes."""
    name = token[1:] if token.startswith('"') else token.translate(LOWER)
    return name.encode()[:63].decode(errors="ignore")


def without_comments(text: str) -> str:
    """Return a text with a space in the place of each comment; what is quoted stays as it is."""
    if "--" not in text and "/*" not in text:
        return text
    pieces = []
    for kind, start, stop in tokens(text):
        pieces.append(" " if kind == "space" and text[start] in "-/" else text[start:stop])
    return "".join(pieces)
