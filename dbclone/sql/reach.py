"""What one statement reaches beyond the database that it runs in: other databases, roles, the whole
server, its files, a machine.

Pure text, no connection. What is only created, such as a function's body, reaches nothing yet:
`plants` tells what it would reach when somebody calls it. Words in literals, comments and data
reach nothing. The rules are those of the pages on SQL commands in the PostgreSQL documentation, of
its psql page (backslash commands anywhere outside quotes), and of the catalogues that all databases
share (catalogs-overview).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from .statements import fold, split, tokens

#: Kinds of reach.
DATABASE = (
    "database"  # another database, by name: a dump made with --create means the one being built
)
ROLE = "role"  # a role or a membership, which all databases share
PSQL = "psql"  # a command of psql, which is no SQL
CONNECT = "connect"  # \connect, with the name of a database
OUTSIDE = "outside"  # whatever else


@dataclass(frozen=True)
class Reach:
    """One thing that a statement reaches.

    `kind` is one of those above; `what`, the statement in words, such as DROP DATABASE shop;
    `names`, the databases or roles in it, as the server stores them (empty text: one that only the
    server will know); `spans`, where in the text those names stand, if the statement could name the
    database being built instead; `verb`, CREATE, ALTER, DROP, COMMENT, GRANT, REVOKE or, for what
    would take a database from its owner or its name, TAKE; `pairs`, (role, member) of a membership,
    or the role of ALTER ROLE … IN DATABASE; `at`, where in the text it begins; `if_exists`, whether
    it says so; `alone`, whether it is all that its DO block does; `body`, whether it stands in one.
    """

    kind: str
    what: str
    names: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    verb: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    at: int = 0
    if_exists: bool = False
    alone: bool = True
    body: bool = False


class Token(NamedTuple):
    """`word` is in upper case for a word, empty for anything else; `name`, what it is as an
    identifier, else empty."""

    kind: str
    word: str
    name: str
    start: int
    stop: int


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Without one of these in it a statement reaches nothing and names no role. To look for them in a
# long INSERT is cheap, to look at its tokens is not; and in statements that run, by far the most,
# the words of the others are data.
_RUNNING = (
    *(
        "\\",
        "dblink",
        "slot",
        "lo_import",
        "lo_export",
        "reload_conf",
        "rotate_logfile",
        "promote",
        "_backend",
        "_wal",
        "backup",
    ),
    *(
        "restore_point",
        "pg_read",
        "pg_ls_",
        "pg_file",
        "pg_database",
        "pg_auth",
        "pg_db_",
        "pg_tablespace",
        "pg_sh",
        "pg_parameter",
    ),
    *("pg_replication", "pg_subscription"),
)
_OTHERS = (
    *_RUNNING,
    *(
        "database",
        "role",
        "user",
        "group",
        "owne",
        "system",
        "tablespace",
        "subscription",
        "server",
        "program",
        "grant",
        "revoke",
    ),
    *("foreign", "copy", "authorization", "policy", "parameter", "standard_conforming_strings"),
)
_CALLS = re.compile(
    r"dblink|dblink_(?:connect|connect_u|exec|open|fetch|send_query|get_result)|lo_import|lo_export"
    r"|pg_(?:create|drop|copy|sync)_(?:physical_|logical_)?replication_slots?|pg_replication_(?:slot_advance|origin_(?:create|drop|advance))"
    r"|pg_(?:reload_conf|rotate_logfile|promote|terminate_backend|cancel_backend|switch_wal|create_restore_point)"
    r"|pg_(?:wal_replay_pause|wal_replay_resume|backup_start|backup_stop|start_backup|stop_backup)"
    r"|pg_(?:read_file|read_binary_file|read_server_files|ls_dir|ls_\w+dir|file_write|file_rename|file_unlink|file_sync)"
)
_SHARED = _listed(
    "pg_database pg_authid pg_auth_members pg_db_role_setting pg_tablespace pg_shdescription"
    " pg_shseclabel pg_shdepend pg_parameter_acl pg_replication_origin pg_subscription"
)
#: Statements that run the functions they name, at once. PERFORM, RETURN and assignments are those
#: of bodies.
_RUNS = _listed(
    "SELECT WITH INSERT UPDATE DELETE MERGE CALL VALUES TABLE EXPLAIN COPY EXECUTE PREPARE DECLARE"
)
ANYONE = _listed("""PUBLIC CURRENT_USER CURRENT_ROLE SESSION_USER NONE""")
_ROLES = ("ROLE", "USER", "GROUP")
# Where in a body of PL/pgSQL a statement may begin.
_OPENS = _listed("""BEGIN THEN ELSE LOOP DECLARE""")
# What a block that is there only to make roles has none of.
_CHANGES = _listed("""
    INSERT UPDATE DELETE MERGE PERFORM CALL COPY TRUNCATE GRANT REVOKE COMMENT SECURITY TABLE SCHEMA
    EXTENSION VIEW FUNCTION TYPE INDEX SEQUENCE DATABASE PUBLICATION POLICY TRIGGER DOMAIN SET OWNER
""")


def _significant(text: str, most: int = 0) -> list[Token]:
    """Return the tokens of a statement without white space and comments; arguments: `most`, how
    many (0: all)."""
    found: list[Token] = []
    for kind, start, stop in tokens(text):
        if kind in ("space", "end"):
            continue
        if kind == "word":
            found.append(Token(kind, text[start:stop].upper(), fold(text[start:stop]), start, stop))
        elif kind == "ident":
            found.append(
                Token(
                    kind, "", fold('"' + text[start + 1 : stop - 1].replace('""', '"')), start, stop
                )
            )
        else:
            found.append(Token(kind, "", "", start, stop))
        if len(found) == most:
            break
    return found


class _Words:
    """The significant tokens of a statement, asked by position;
    beyond the end there are empty ones."""

    _NONE = Token("", "", "", -1, -1)

    def __init__(self, text: str, found: list[Token]) -> None:
        self.text, self.found = text, found

    def __getitem__(self, at: int) -> Token:
        return self.found[at] if 0 <= at < len(self.found) else self._NONE

    def __len__(self) -> int:
        return len(self.found)

    def says(self, at: int, *words: str) -> bool:
        """Return whether these words stand there, one after the other."""
        return all(self[at + number].word == word for number, word in enumerate(words))

    def symbol(self, at: int) -> str:
        """Return the text of a token that is neither word nor name."""
        token = self[at]
        return (
            self.text[token.start : token.stop]
            if token.kind in ("other", "open", "close", "string")
            else ""
        )

    def top(self, begin: int = 0) -> Iterator[int]:
        """Yield the positions outside parentheses, from `begin`."""
        depth = 0
        for at in range(begin, len(self.found)):
            kind = self.found[at].kind
            depth += (kind == "open") - (kind == "close")
            if depth <= 0 and kind != "close":
                yield at

    def find(self, begin: int, *words: str) -> int:
        """Return where one of these words first stands outside parentheses, or -1."""
        return next((at for at in self.top(begin) if self.found[at].word in words), -1)

    def optional(self, at: int, *words: str) -> int:
        """Return the position behind these words if they stand there, else `at`."""
        return at + len(words) if self.says(at, *words) else at

    def names(self, at: int) -> tuple[list[Token], int]:
        """Return the names of a list with commas that begins at `at`, and where it ends."""
        found = []
        while True:
            if self[at].word == "GROUP" and self[at + 1].name and self.symbol(at + 1) == "":
                at += 1  # GRANT … TO GROUP x
            found.append(self[at])
            at += 1
            if self.symbol(at) != ",":
                return found, at
            at += 1


def _literal(text: str) -> str:
    """Return what a string constant says; of escapes only the doubled quotes
    and backslashes matter here."""
    if not text:
        return ""
    if text.startswith("$"):
        end = text.find("$", 1) + 1
        return text[end : -end if text.endswith(text[:end]) and len(text) >= 2 * end else None]
    body = text[text.find("'") + 1 :].removesuffix("'").replace("''", "'")
    return (
        re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), body, flags=re.S)
        if text[0] in "eE"
        else body
    )


def first_word(text: str) -> str:
    """Return the first word of a statement, in upper case; empty if it begins with no word."""
    return next(
        (
            text[start:stop].upper() if kind == "word" else ""
            for kind, start, stop in tokens(text)
            if kind != "space"
        ),
        "",
    )


def might(text: str, first: str) -> bool:
    """Return whether it is worth asking `reach`, `plants` and `naming` about a statement, whose
    first word is `first`."""
    folded = text.lower()
    return any(
        word in folded for word in (_RUNNING if first in _RUNS and first != "COPY" else _OTHERS)
    )


def reach(text: str) -> tuple[Reach, ...]:
    """Return what one statement, or one line of psql, reaches beyond the database that it runs in;
    empty for nothing.

    Arguments: `text`, as `statements.split` yields it: one statement with the comments inside and
    before it.
    """
    if text.startswith("\\"):
        return (command(text),)
    words = _Words(text, _significant(text))
    found = _head(words)
    for at, token in enumerate(words.found):
        if token.kind == "other" and text[token.start] == "\\":
            line = text[token.start :].partition("\n")[0].strip()
            found.append(replace(command(line), at=token.start, kind=PSQL, what=_first(line)))
            break
        found += _writes(words, at)
    if _runs(words):
        found += _called(words)
    if words[0].word == "DO":
        found += [
            r
            for token in words.found
            if token.kind == "string"
            for r in _body(_literal(text[token.start : token.stop]))
        ]
        found = [replace(r, at=0, spans=()) for r in found]
    return tuple(found)


def plants(text: str) -> tuple[str, tuple[Reach, ...]]:
    """Return the name of the function that a statement creates, and what calling it would reach;
    ("", ()) for anything else."""
    head = _Words(text, _significant(text, 8))
    at = head.optional(1, "OR", "REPLACE")
    if head[0].word != "CREATE" or head[at].word not in ("FUNCTION", "PROCEDURE"):
        return "", ()
    words = _Words(text, _significant(text))
    name = words[at + 3] if words.symbol(at + 2) == "." else words[at + 1]
    found = [
        r
        for token in words.found
        if token.kind == "string"
        for r in _body(_literal(text[token.start : token.stop]))
    ]
    return name.name, tuple(replace(r, at=0, spans=()) for r in [*found, *_called(words)])


def calls(text: str) -> Iterator[str]:
    """Yield the names of the functions that a statement calls at once, where it runs any."""
    words = _Words(text, _significant(text))
    if words[0].word == "DO":
        for token in words.found:
            if token.kind == "string":
                inside = _literal(text[token.start : token.stop])
                yield from _calls(_Words(inside, _significant(inside)))
    elif _runs(words):
        yield from _calls(words)


def _runs(words: _Words) -> bool:
    first = words[0].word
    if first == "CREATE":
        kind = next(
            (
                w.word
                for w in words.found[1:6]
                if w.word in ("TABLE", "VIEW", "FUNCTION", "PROCEDURE", "RULE", "TRIGGER")
            ),
            "",
        )
        return kind == "TABLE" or words.says(1, "MATERIALIZED", "VIEW")
    return first in _RUNS or words.symbol(0) == "("


def _calls(words: _Words) -> Iterator[str]:
    for at in range(1, len(words)):
        if words[at].kind == "open" and words[at - 1].name:
            yield words[at - 1].name


def _called(words: _Words) -> list[Reach]:
    names = dict.fromkeys(name for name in _calls(words) if _CALLS.fullmatch(name))
    return [Reach(OUTSIDE, f"a call of {name}") for name in names]


def _writes(words: _Words, at: int) -> Iterator[Reach]:
    """Yield what a statement writes to catalogues that all databases share."""
    verb = words[at].word
    if verb in ("INSERT", "MERGE"):
        next_ = words.optional(at + 1, "INTO")
    elif verb == "DELETE":
        next_ = words.optional(at + 1, "FROM")
    elif verb == "TRUNCATE":
        next_ = words.optional(at + 1, "TABLE")
    elif verb in ("UPDATE", "COPY"):
        next_ = at + 1
    else:
        return
    next_ = words.optional(next_, "ONLY")
    if words[next_].name == "pg_catalog" and words.symbol(next_ + 1) == ".":
        next_ += 2
    if (
        words[next_].name in _SHARED
        and words.symbol(next_ + 1) != "."
        and not (verb == "COPY" and words.says(next_ + 1, "TO"))
    ):
        yield Reach(OUTSIDE, f"{verb} of {words[next_].name}", at=words[at].start)


def _head(words: _Words) -> list[Reach]:
    """Return what a statement reaches by its first words."""
    verb = words[0].word
    if verb in ("CREATE", "ALTER", "DROP"):
        return _object(words, verb)
    if verb in ("COMMENT", "SECURITY"):
        at = words.find(1, "ON") + 1
        if at and words[at].word in ("DATABASE", "ROLE", "TABLESPACE", "SUBSCRIPTION"):
            kind = {"DATABASE": DATABASE, "ROLE": ROLE}.get(words[at].word, OUTSIDE)
            label = "SECURITY LABEL" if verb == "SECURITY" else verb
            what = f"{label} ON {words[at].word} {words[at + 1].name}".strip()
            return [Reach(kind, what, (words[at + 1].name,), verb="COMMENT")]
    if verb in ("GRANT", "REVOKE"):
        return _grant(words, verb)
    if verb == "REINDEX":
        at = next((at for at in words.top(1) if words[at].kind not in ("open", "close")), 1)
        if words[at].word in ("DATABASE", "SYSTEM"):
            return [Reach(OUTSIDE, f"REINDEX {words[at].word}")]
    if verb == "REASSIGN" and words[1].word == "OWNED":
        return [Reach(OUTSIDE, "REASSIGN OWNED")]
    if verb == "SET" and (
        at := next((at for at in (1, 2) if words[at].name == "standard_conforming_strings"), 0)
    ):
        value = words[at + 2].word or _literal(words.symbol(at + 2)).upper()
        # Then the server would read the rest of the file otherwise than we do
        if value not in ("ON", "TRUE", "DEFAULT"):
            return [Reach(OUTSIDE, "SET standard_conforming_strings")]
    if words.says(0, "IMPORT", "FOREIGN", "SCHEMA"):
        return [Reach(OUTSIDE, "IMPORT FOREIGN SCHEMA")]
    if verb == "COPY":
        at = words.find(1, "FROM", "TO")
        if at > 0 and words[at + 1].word == "PROGRAM":
            return [Reach(OUTSIDE, f"COPY {words[at].word} PROGRAM")]
        if at > 0 and words[at + 1].kind == "string":
            return [Reach(OUTSIDE, f"COPY {words[at].word} a file of the server")]
    return []


def _object(words: _Words, verb: str) -> list[Reach]:
    kind = words[1].word
    if kind in _ROLES and words[2].word == "MAPPING":
        return [Reach(OUTSIDE, f"{verb} USER MAPPING")] if verb != "DROP" else []
    if (
        kind in ("TABLESPACE", "SUBSCRIPTION")
        or (kind == "SERVER" and verb != "DROP")
        or (verb == "ALTER" and kind == "SYSTEM")
    ):
        return [Reach(OUTSIDE, f"{verb} {kind}")]
    if verb == "DROP" and kind == "OWNED":
        return [Reach(OUTSIDE, "DROP OWNED")]
    at = words.optional(2, "IF", "EXISTS")
    if kind == "DATABASE":
        name = words[at]
        settable = (
            verb == "ALTER"
            and words[at + 1].word in ("SET", "RESET")
            and words[at + 2].word != "TABLESPACE"
        )
        spans = ((name.start, name.stop),) if settable and name.name else ()
        taken = (
            verb == "ALTER"
            and words.find(2, "OWNER", "RENAME", "TABLESPACE", "IS_TEMPLATE", "ALLOW_CONNECTIONS")
            > 0
        )
        what = f"{verb} DATABASE {name.name}".strip()
        return [
            Reach(DATABASE, what, (name.name,), spans, "TAKE" if taken else verb, if_exists=at > 2)
        ]
    if kind not in _ROLES:
        return []
    if verb == "DROP":
        names = tuple(token.name for token in words.names(at)[0])
        return [
            Reach(
                ROLE, f"DROP {kind} {', '.join(names)}".strip(), names, verb=verb, if_exists=at > 2
            )
        ]
    name = words[at]
    shown = name.name if name.word not in ANYONE and name.word != "ALL" else name.word
    if verb == "ALTER" and words.says(at + 1, "IN", "DATABASE"):
        other = words[at + 3]
        spans = ((other.start, other.stop),) if other.name else ()
        what = f"ALTER {kind} {shown} IN DATABASE {other.name}".strip()
        return [Reach(DATABASE, what, (other.name,), spans, verb, ((shown, ""),))]
    return [Reach(ROLE, f"{verb} {kind} {shown}".strip(), (shown,), verb=verb)]


def _grant(words: _Words, verb: str) -> list[Reach]:
    to = words.find(1, "TO" if verb == "GRANT" else "FROM")
    on = words.find(1, "ON")
    if 0 < on < (to if to > 0 else len(words)):
        if words[on + 1].word == "DATABASE":
            found = words.names(on + 2)[0]
            names = tuple(token.name for token in found)
            spans = ((found[0].start, found[-1].stop),) if all(names) else ()
            return [
                Reach(
                    DATABASE, f"{verb} ON DATABASE {', '.join(names)}".strip(), names, spans, verb
                )
            ]
        if words[on + 1].word in ("TABLESPACE", "PARAMETER"):
            return [Reach(OUTSIDE, f"{verb} ON {words[on + 1].word}")]
        return []
    if to < 0:
        return []
    first = words.optional(words.optional(1, "ADMIN", "OPTION", "FOR"), "INHERIT", "OPTION", "FOR")
    roles, members = words.names(first)[0], words.names(to + 1)[0]
    pairs = tuple(
        (role.name, "" if member.word in ANYONE else member.name)
        for role in roles
        for member in members
    )
    names, others = tuple(t.name for t in roles), ", ".join(t.name for t in members)
    what = f"{verb} {', '.join(names)} {words[to].word} {others}"
    return [Reach(ROLE, what, names, verb=verb, pairs=pairs)]


def _body(text: str) -> list[Reach]:
    """Return what the statements of a body in PL/pgSQL or SQL reach, those in the literals of an
    EXECUTE included."""
    if not might(text, ""):
        return []
    here = "current_database" in text.lower()
    found: list[Reach] = []
    all_ = _significant_with_ends(text)
    changes = any(token.word in _CHANGES for token in all_)
    piece: list[Token] = []
    pieces = [piece]
    for token in all_:
        if token.kind == "end":
            pieces.append(piece := [])
        elif token.word in _OPENS:
            piece.append(token)
            pieces.append(piece := [])
        else:
            piece.append(token)
    for piece in pieces:
        words = _Words(text, piece)
        inside = (
            _head(words)
            + [r for at in range(len(words)) for r in _writes(words, at)]
            + _called(words)
        )
        if words[0].word == "EXECUTE" or any(token.word == "EXECUTE" for token in piece):
            literals = [
                _literal(text[token.start : token.stop])
                for token in piece
                if token.kind == "string"
            ]
            inside += [
                r
                for literal in literals
                for statement in split(literal)
                for r in reach(statement.text)
            ]
            changes = changes or any(
                token.word in _CHANGES for literal in literals for token in _significant(literal)
            )
        for one in inside:
            # The database that it is in, by a name that only the server knows, is the one being
            # built. Its comment is our mark.
            if (
                one.kind == DATABASE
                and one.verb in ("ALTER", "GRANT", "REVOKE")
                and here
                and not any(one.names)
            ):
                continue
            found.append(replace(one, spans=()))
    others = any(r.kind != ROLE or r.verb not in ("CREATE", "ALTER") or r.pairs for r in found)
    return [replace(r, alone=not changes and not others, body=True) for r in found]


def _significant_with_ends(text: str) -> list[Token]:
    found = _significant(text)
    ends = [
        Token("end", "", "", start, stop) for kind, start, stop in tokens(text) if kind == "end"
    ]
    return sorted([*found, *ends], key=lambda token: token.start)


# ---- commands of psql
# --------------------------------------------------------------------------------------------------

# What only prints, or says how; `\restrict` is how pg_dump guards what it writes (PostgreSQL
# documentation, app-psql).
_PRINTS = re.compile(
    r"\\(?:(?:un)?restrict|q?echo|warn|timing|pset|x|t|a|H|C|f|conninfo|copyright|h|help|errverbose|sf|sv|z|l\+?|d\w*\+?)"
    r"(?:\s|$)"
)
_SETS = re.compile(
    r"\\(?:un)?set\s+(?:ON_ERROR_STOP|ON_ERROR_ROLLBACK|ECHO|ECHO_HIDDEN|QUIET|VERBOSITY|SHOW_CONTEXT|FETCH_COUNT|HISTCONTROL|HISTFILE"
    r"|HISTSIZE|COMP_KEYWORD_CASE|PROMPT[123]|SHOW_ALL_RESULTS)(?:\s|$)"
)
# SQL_ASCII is what pg_dump writes before a \connect to an odd name
# (appendPsqlMetaConnect in src/fe_utils/string_utils.c).
_ENCODING = re.compile(r"\\encoding(?:\s+'?(?:utf-?8|unicode|sql_ascii)'?)?\s*$", re.I)
_CONNECT = re.compile(r"\\c(?:onnect)?(?:\s|$)")
HARMLESS = "harmless"  # the kind of a command of psql that only prints


def _first(line: str) -> str:
    return line.split()[0] if line.split() else line


def command(line: str) -> Reach:
    """Return what one line of psql does: HARMLESS if it only prints, CONNECT with the database's
    name, else PSQL."""
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "", line)
    if "`" in line:
        return Reach(PSQL, f"{_first(line)} with a command of the shell")
    inner = [f"\\{name}" for name in re.findall(r"\\(\w+|!)", bare)]
    if "\\" in bare[1:]:  # a second command on the line
        return Reach(PSQL, next((name for name in inner if not _PRINTS.match(name)), _first(line)))
    if _CONNECT.match(line):
        name = _connected(line)
        return Reach(
            CONNECT if name is not None else PSQL, f"\\connect {name or ''}".strip(), (name or "",)
        )
    if _PRINTS.match(line) or _SETS.match(line) or _ENCODING.match(line):
        return Reach(HARMLESS, _first(line))
    if re.match(r"\\copy\b", line):
        how = re.search(r"\b(program|to)\b", bare, re.I)
        return Reach(PSQL, f"\\copy … {how[1].upper()}" if how else "\\copy")
    return Reach(PSQL, _first(line))


#: Which commands lead psql itself elsewhere: into another database, a shell, a file, or statements
#: that are not in the script.
LEADING = re.compile(
    r"\\(?:c|connect|!|gexec|o|out|w|write|copy …)(?: .*)?|.* with a command of the shell", re.S
)


def _connected(line: str) -> str | None:
    """Return the database that a \\connect names (empty: the same again); None if it names more, or
    cannot be told."""
    arguments: list[str] = re.findall(r"\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'|\S+", line)[1:]
    arguments = [a for a in arguments if not a.startswith("-reuse-previous=")]
    while arguments and arguments[-1] == "-":
        arguments.pop()
    if len(arguments) > 1 or any(a.startswith(":") for a in arguments):
        return None
    if not arguments or arguments[0] == "-":
        return ""
    first = arguments[0]
    name = first[1:-1].replace(first[0] * 2, first[0]) if first[0] in "'\"" else first
    if "=" in name or "://" in name:
        if found := re.fullmatch(r"\s*dbname\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(\S+))\s*", name):
            return re.sub(r"\\(.)", r"\1", str(found[1] or found[2]))
        return None
    return name


# ---- roles that a statement names
# --------------------------------------------------------------------------------------------------


class Naming(NamedTuple):
    """The roles that a statement names and needs, and what it would be without some of them."""

    names: tuple[str, ...]
    clause: str  # OWNER, GRANT, REVOKE, POLICY, AUTHORIZATION, SET ROLE, DEFAULT PRIVILEGES
    without: Callable[[frozenset[str]], str | None]


def naming(text: str) -> Naming | None:
    """Return which roles a statement gives something to, or acts as; None for a statement of
    another kind.

    CREATE, ALTER and DROP ROLE are told by `reach`. `without(missing)` returns the text without
    those roles, or None if nothing is left of it.
    """
    if first_word(text) not in ("ALTER", "CREATE", "GRANT", "REVOKE", "SET"):
        return None
    words = _Words(text, _significant(text))
    verb = words[0].word
    if words.says(0, "CREATE", "SCHEMA"):
        return _authorization(text, words)
    if verb == "SET":
        return _set_role(text, words)
    defaults = words.says(0, "ALTER", "DEFAULT", "PRIVILEGES")
    if verb == "ALTER" and words[1].word != "POLICY" and not defaults:
        return _owner(text, words)
    # Where a clause begins, its roles, where it ends.
    lists: list[tuple[int, list[Token], int]] = []
    clause = verb
    if defaults:
        clause = "DEFAULT PRIVILEGES"
        act = words.find(3, "GRANT", "REVOKE")
        if words[3].word == "FOR":
            lists.append((3, *words.names(5)))
        to = words.find(act + 1, "TO" if words[act].word == "GRANT" else "FROM")
        if act > 0 and to > 0:
            lists.append((to, *words.names(to + 1)))
    elif verb in ("GRANT", "REVOKE"):
        to = words.find(1, "TO" if verb == "GRANT" else "FROM")
        if to < 0:
            return None
        on = words.find(1, "ON")
        if not 0 < on < to:
            first = words.optional(
                words.optional(1, "ADMIN", "OPTION", "FOR"), "INHERIT", "OPTION", "FOR"
            )
            lists.append((0, *words.names(first)))
        lists.append((to, *words.names(to + 1)))
    elif verb in ("CREATE", "ALTER") and words[1].word == "POLICY":
        clause = "POLICY"
        to = words.find(2, "TO")
        if to < 0 or words[to - 1].word == "RENAME":
            return None
        lists.append((to, *words.names(to + 1)))
    else:
        return None
    names = tuple(
        dict.fromkeys(
            t.name for _, found, _ in lists for t in found if t.word not in ANYONE and t.name
        )
    )
    return Naming(names, clause, lambda missing: _thinned(text, lists, missing)) if names else None


def _authorization(text: str, words: _Words) -> Naming | None:
    at = words.optional(2, "IF", "NOT", "EXISTS")
    own = words[at].word == "AUTHORIZATION"
    at = at if own else at + 1
    if words[at].word != "AUTHORIZATION" or words[at + 1].word in ANYONE:
        return None
    role = words[at + 1]
    # Own: it is the schema's name, too.
    stop = role.start if own else role.stop
    return _cutting(text, "AUTHORIZATION", role, words[at].start, stop)


def _owner(text: str, words: _Words) -> Naming | None:
    at = next((at for at in words.top(1) if words.says(at, "OWNER", "TO")), -1)
    if at < 0 or words[at + 2].word in ANYONE or words[1].word == "DATABASE":
        return None
    role = words[at + 2]
    if words.symbol(at + 3) == ",":
        return _cutting(text, "OWNER", role, words[at].start, words[at + 3].stop)
    if words.symbol(at - 1) == ",":
        return _cutting(text, "OWNER", role, words[at - 1].start, role.stop)
    return Naming((role.name,), "OWNER", lambda missing: None)


def _set_role(text: str, words: _Words) -> Naming | None:
    clause = "SET ROLE"
    authorization = words.says(1, "SESSION", "AUTHORIZATION")
    at = 1 if authorization or words[1].word not in ("SESSION", "LOCAL") else 2
    if words.says(at, "SESSION", "AUTHORIZATION"):
        clause, at = "SET SESSION AUTHORIZATION", at + 2
    elif words[at].word == "ROLE":
        at += 1 + (words.symbol(at + 1) == "=" or words[at + 1].word == "TO")
    else:
        return None
    role = words[at]
    name = role.name or (_literal(text[role.start : role.stop]) if role.kind == "string" else "")
    if role.word in (*ANYONE, "DEFAULT") or not name or name == "none":
        return None
    return Naming((name,), clause, lambda missing: None)


def _cutting(text: str, clause: str, role: Token, start: int, stop: int) -> Naming:
    return Naming((role.name,), clause, lambda missing: (text[:start] + text[stop:]).strip())


def _thinned(
    text: str, lists: list[tuple[int, list[Token], int]], missing: frozenset[str]
) -> str | None:
    """Return a text without the missing roles of its lists; None if one of those would be empty."""
    for _, found, _ in reversed(lists):
        kept = [t for t in found if t.name not in missing or t.word in ANYONE]
        if not kept:
            return None
        if len(kept) < len(found):
            text = (
                text[: found[0].start]
                + ", ".join(text[t.start : t.stop] for t in kept)
                + text[found[-1].stop :]
            )
    return text
