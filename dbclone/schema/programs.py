"""What PostgreSQL's own programs in a command line would do elsewhere than in the database being
built. Nothing is run here.

psql follows `\\connect` and runs CREATE DATABASE wherever it is, so the files and commands that it
is given are looked through as SQL files are. Other programs are not looked into. Options are those
of the documentation's pages app-psql and app-pgrestore.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..server.dsn import mask_any
from .scripts import Refusal, Roles, Script, refusals

_FORBIDDEN = ("createdb", "dropdb", "createuser", "dropuser")
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
# Options with a value, of one letter and long ones.
_VALUES = {"psql": "cfdhpULovPFRT", "pg_restore": "dhpUfFIjLnNPStT"}
_LONG = frozenset(
    [
        "host", "port", "username", "dbname", "file", "command", "output", "log-file", "set",
        "variable", "pset", "field-separator", "record-separator", "table-attr", "format", "index",
        "jobs", "use-list", "schema", "exclude-schema", "function", "superuser", "table", "trigger",
        "section", "role", "filter",
    ]
)  # fmt: skip


def elsewhere(line: str, root: Path, roles: Roles) -> list[Refusal]:
    """Return what of a command line would be done elsewhere than in the database being built.

    Arguments: `root`, where it runs; `roles`, those of the server.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # for the command to say
        return []
    return [
        *_led_away(words),
        *(found for command in _commands(words) for found in _program(command, root, roles)),
    ]


def wrapped_commands(line: str) -> list[str]:
    """Return the command lines inside a command line: what env or a shell is told to run."""
    try:
        words = shlex.split(line)
    except ValueError:
        return []
    return [shlex.join(command) for command in _commands(words) if command != words]


def _is_prefix(word: str) -> bool:
    """Whether a word stands before the program of a command: a variable, or what sets or times."""
    return word in ("env", "exec", "time", "nice") or bool(re.fullmatch(r"\w+=.*", word, re.S))


def _led_away(words: Sequence[str]) -> Iterator[Refusal]:
    """Yield the variables that a command is given in front and that name a database."""
    for word in itertools.takewhile(_is_prefix, words):
        if re.match(r"PG(HOST|HOSTADDR|PORT|DATABASE|USER|SERVICE)=|\w*DATABASE_UR[LI]=", word):
            name = word.partition("=")[0]
            yield Refusal(
                name,
                mask_any(word),
                "It leads the command to another database than the one being built.",
                _TARGET,
            )


def _commands(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield the programs of a command with their arguments: itself, or what a shell has to run."""
    words = list(itertools.dropwhile(_is_prefix, words))
    if not words:
        return
    if _name(words[0]) in _SHELLS and len(words) > 2 and re.fullmatch(r"-\w*c", words[1]):
        lexer = shlex.shlex(words[2], posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            inner = list(lexer)
        except ValueError:
            return
        part: list[str] = []
        for word in [*inner, ";"]:
            if set(word) <= set(";&|()"):
                yield from _commands(part)
                part = []
            else:
                part.append(word)
        return
    yield words


def _name(word: str) -> str:
    return Path(word).name.removesuffix(".exe")


def _program(words: list[str], root: Path, roles: Roles) -> Iterator[Refusal]:
    name = _name(words[0])
    if name in _FORBIDDEN:
        yield Refusal(
            name,
            name,
            "It makes or removes a database or a role on the server.",
            "Leave it out: dbclone makes the database.",
        )
        return
    if name not in _VALUES:
        return
    files: list[str] = []
    commands: list[str] = []
    targets: list[str] = []
    for option, value in _options(words[1:], _VALUES[name]):
        if option in ("C", "create") and name == "pg_restore":
            yield Refusal(
                name,
                "pg_restore --create",
                "It creates the database that the dump names, and fills that.",
                _RESTORE,
            )
        elif option in ("f", "file") and name == "psql":
            files.append(value)
        elif option in ("c", "command") and name == "psql":
            commands.append(value)
        elif option in _TARGETS or (
            option == "" and name == "psql"
        ):  # the second of those is a user
            targets.append(value)
        elif option == "<" and name == "psql":
            files.append(value)
    for target in targets:
        # Which a shell takes from the environment, and that leads to the build
        if "$" not in target:
            yield Refusal(
                name,
                f"{name} {mask_any(target)}",
                "It is told where to connect, and that is not the database being built.",
                _TARGET,
            )
    for text in commands:
        yield from refusals(Script(f"{name} -c", text), roles)
    seen: set[Path] = set()
    for file in files:
        yield from _file(root / file, file, root, roles, seen)


_TARGETS = ("d", "dbname", "h", "host", "p", "port")
_RESTORE = (
    "Leave --create out, and let a shell name the database:"
    " sh -c 'pg_restore -d \"$PGDATABASE\" FILE'."
)
_TARGET = (
    "Leave it out: the environment of the command leads to the database being built"
    " (PGHOST, PGDATABASE and so on)."
)


def _options(words: Sequence[str], valued: str) -> Iterator[tuple[str, str]]:
    """Yield (option, value) as getopt reads them; what is no option comes with an empty name, a
    redirected file with `<`."""
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "<":
            yield "<", waiting.pop(0) if waiting else ""
        elif set(word) <= set("<>&") or word.isdigit():
            continue
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and name in _LONG and waiting:
                value = waiting.pop(0)
            yield name, value
        elif word.startswith("-") and len(word) > 1:
            rest = word[1:]
            while rest:
                letter, rest = rest[0], rest[1:]
                if letter in valued:
                    value, rest = rest or (waiting.pop(0) if waiting else ""), ""
                    yield letter, value
                else:
                    yield letter, ""
        else:
            yield "", word


_INCLUDED = re.compile(r"^\\(i|ir|include|include_relative)[ \t]+(\S+)[ \t]*\r?$", re.M)


def _file(path: Path, shown: str, root: Path, roles: Roles, seen: set[Path]) -> Iterator[Refusal]:
    """Yield what psql may not run of a file and of those that it includes; of one that cannot be
    read, psql will say so."""
    try:
        path = path.resolve()
        if path in seen or not path.is_file() or os.path.getsize(path) > 2**30:
            return
        seen.add(path)
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except (OSError, ValueError):
        return
    yield from refusals(Script(shown, text), roles)
    for kind, name in _INCLUDED.findall(text):
        inner = name.strip("'")
        base = path.parent if kind in ("ir", "include_relative") else root
        yield from _file(base / inner, inner, root, roles, seen)
