"""What must be known of a statement, told from its text: whether it controls transactions, only
reads, runs only inside a transaction block or only outside one, alters objects, declares a cursor.
Pure text, no connection; comments change nothing.

What text cannot tell is a function of the project's own that writes when it is selected: its name
is looked for in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from .statements import UPPER, fold, split, tokens, without_comments

_LONG = 10_000  # characters: of longer texts only the last one is remembered
_VERBS = (
    "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE", "PREPARE",
    "SET",
)  # fmt: skip
_BOUNDARIES = ("BEGIN", "COMMIT", "END", "ROLLBACK", "ABORT")
# Between SET and what is set a comment may stand, so only the second word is looked for.
_MIGHT_CONTROL = re.compile(rf"\b(?:{'|'.join(_VERBS[:-1])}|TRANSACTION|CONSTRAINTS)\b", re.I)
# What can only look. SET and the like are about the session,
# FETCH about a cursor that was declared before.
_READS = frozenset(
    (
        "SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN", "WITH", "SET", "RESET", "FETCH", "MOVE",
        "CLOSE", "DECLARE", "DEALLOCATE",
    )
)  # fmt: skip
# What takes no snapshot: after it, a block may still be given another isolation level.
_BLIND = frozenset(
    ("", "SET", "SHOW", "RESET", "LOCK", "LISTEN", "UNLISTEN", "NOTIFY", "DEALLOCATE")
)
# How statements begin that leave objects as they are: what was prepared before them means the same
# after they are rolled back.
_HARMLESS = (
    "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "(", "COPY",
    "FETCH", "MOVE", "CLOSE", "DECLARE", "SET", "SHOW", "RESET", "EXPLAIN", "LOCK", "TRUNCATE",
    "NOTIFY", "LISTEN", "BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT",
    "RELEASE",
)  # fmt: skip
_FIRST = re.compile(r"[\s(]*([A-Za-z]*)")
# FOR UPDATE and FOR SHARE lock rows, ANALYZE runs what is explained; a statement after another is
# not looked at.
_MAY_WRITE = re.compile(
    r"\b(INSERT|UPDATE|DELETE|MERGE|INTO|CALL|EXECUTE|ANALYZE|ANALYSE|FOR\s+(KEY\s+)?SHARE|SETVAL|lo_\w+|pg_advisory\w+)\b|;\s*\S",
    re.I,
)
# Functions of the project and of its extensions that are not promised to leave the database alone.
WRITERS = """SELECT DISTINCT lower(proname::text) FROM pg_catalog.pg_proc
    WHERE oid >= 16384 AND provolatile = 'v' AND prokind <> 'a'"""
_WORD = re.compile(r"[A-Za-z_]\w*")
_PURE = re.compile(r"[\s(]*(SELECT|VALUES|TABLE)\b(?!.*\bset_config\b)", re.I | re.S)
_ONLY_INSIDE = re.compile(r"\s*(LOCK|DECLARE)\b(?!.*;\s*\S)", re.I | re.S)
_HELD = re.compile(r"\bWITH\s+HOLD\b", re.I)
# PreventInTransactionBlock in the server's source, and LISTEN, which hears nothing until its
# transaction has ended.
_NEVER_INSIDE = re.compile(
    r"""\s*(VACUUM|(?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE)|ALTER\s+SYSTEM|CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY
    |DROP\s+INDEX\s+CONCURRENTLY|REINDEX\s+(?:\([^)]*\)\s*)?(?:DATABASE|SYSTEM|SCHEMA|(?:TABLE|INDEX)\s+CONCURRENTLY)
    |(?:CREATE|DROP)\s+SUBSCRIPTION|CLUSTER\s*(?:;|$)|DISCARD\s+ALL|LISTEN)\b""",
    re.I | re.X,
)
# Of those, what reaches beyond the database.
_LEAVES = re.compile(r"(?:CREATE|DROP) (?:DATABASE|TABLESPACE|SUBSCRIPTION)|ALTER SYSTEM")
_DISCARD_ALL = re.compile(r"\s*DISCARD\s+ALL\s*;?\s*\Z", re.I)
_DECLARE = re.compile(r'\bDECLARE\s+("(?:[^"]|"")+"|\w+)', re.IGNORECASE)


@dataclass(frozen=True)
class Control:
    """A statement that controls transactions.

    `verb` is begin, modes, constraints, commit, rollback, savepoint, release, rollback_to or
    two_phase; `name` the savepoint's name as the server folds it; `modes` the transaction modes of
    BEGIN and SET TRANSACTION in upper case; `chain` whether AND CHAIN was said.
    """

    verb: str
    name: str = ""
    modes: str = ""
    chain: bool = False


@dataclass(frozen=True)
class Analysis:
    """What is known of a query string: one statement as a rule, or several. Each answer is looked
    for when it is first asked.

    Where it is not sure, the answer is the one that is safe for whoever undoes the statement: it
    writes, it alters, it looks.
    """

    text: str | None  # None if it is not known, which is never sure

    @cached_property
    def plain(self) -> str:
        """The text with a space for each comment."""
        return without_comments(self.text or "")

    @cached_property
    def verb(self) -> str:
        """The first word, in upper case; empty if there is none."""
        first = _FIRST.match(self.plain)
        return first[1].upper() if first else ""

    @cached_property
    def controls(self) -> tuple[tuple[str, Control | None], ...]:
        """The single statements with what each does to the transaction; empty if none of them does
        anything to it. A text without any such word in it, which is the usual case,
        costs one search."""
        if not _MIGHT_CONTROL.search(self.text or ""):
            return ()
        pieces = tuple((s.text, control(s.text)) for s in split(self.text or ""))
        return pieces if any(c is not None for _, c in pieces) else ()

    @cached_property
    def empty(self) -> bool:
        """Whether there is no statement: the server answers that in any state of a transaction."""
        return self.text is not None and not self.plain.strip("; \t\r\n")

    @cached_property
    def _reads(self) -> bool:
        return (
            self.text is not None
            and (self.verb in _READS or self.empty)
            and not _MAY_WRITE.search(self.plain)
        )

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(_WORD.findall(self.plain.lower()))

    def reads_only(self, writers: frozenset[str] = frozenset()) -> bool:
        """Whether it only reads. Arguments: `writers`, names of functions that may write,
        from `WRITERS`."""
        return self._reads and (not writers or writers.isdisjoint(self._words))

    def leaves_nothing(self, writers: frozenset[str] = frozenset()) -> bool:
        """Whether undoing it would change nothing, neither in the database nor in the session.
        Arguments: as `reads_only`."""
        return self.reads_only(writers) and bool(_PURE.match(self.plain))

    @cached_property
    def takes_snapshot(self) -> bool:
        """Whether it looks at data, so that the server takes a snapshot for it."""
        return self.text is None or self.verb not in _BLIND

    @cached_property
    def only_inside(self) -> str:
        """The command, if the server refuses it outside a transaction block; else empty."""
        match = _ONLY_INSIDE.match(self.plain)
        if not match or (match[1].upper() == "DECLARE" and _HELD.search(self.plain)):
            return ""
        return {"LOCK": "LOCK TABLE", "DECLARE": "DECLARE CURSOR"}[match[1].upper()]

    @cached_property
    def never_inside(self) -> str:
        """The command, if inside a transaction block it cannot run, or does nothing; else empty."""
        match = _NEVER_INSIDE.match(self.plain)
        return " ".join(match[1].upper().split()) if match else ""

    @cached_property
    def leaves_database(self) -> bool:
        """Whether it is about other databases or the whole server, where no reset undoes it."""
        return bool(_LEAVES.match(self.never_inside))

    @cached_property
    def alters(self) -> bool:
        """Whether it may change objects that prepared statements use. PostgreSQL plans these anew
        after a change, but fails if their results have other types then, or if a type of theirs was
        made anew (PostgreSQL documentation, sql-prepare)."""
        return not self.plain.lstrip()[:9].upper().startswith(
            _HARMLESS
        ) or ";" in self.plain.rstrip("; \t\r\n")

    @cached_property
    def prepares(self) -> bool:
        """Whether it may prepare a statement by SQL, which no rollback undoes."""
        return self.alters and "PREPARE" in self.plain.upper()

    @cached_property
    def deallocates(self) -> bool:
        """Whether it may discard statements that were prepared."""
        return self.alters and any(word in self.plain.upper() for word in ("DEALLOCATE", "DISCARD"))

    @cached_property
    def discards_all(self) -> bool:
        """Whether it is DISCARD ALL and nothing else."""
        return bool(_DISCARD_ALL.match(self.plain))

    @cached_property
    def declares(self) -> tuple[bytes, ...]:
        """The names of the cursors that it declares; more than those, if the word has another
        meaning in it."""
        if "ECLARE" not in self.plain and "eclare" not in self.plain:
            return ()
        names = _DECLARE.findall(self.plain)
        return tuple(
            n[1:-1].replace('""', '"').encode() if n[0] == '"' else n.lower().encode()
            for n in names
        )


def analyze(text: str | None) -> Analysis:
    """Return what is known of a query string; the same object for the same text,
    as far as it is remembered."""
    return _remembered(text) if text is None or len(text) <= _LONG else _last(text)


_remembered = lru_cache(maxsize=1024)(Analysis)
_last = lru_cache(maxsize=1)(Analysis)  # a cursor asks several times in a row


def _significant(text: str) -> list[str]:
    """Return the tokens of one statement that may control transactions, without white space and
    comments; words in upper case, quoted names unquoted. Any other statement is left at its first
    word, however long it is."""
    found: list[str] = []
    for kind, start, stop in tokens(text):
        token = text[start:stop]
        if kind == "word":
            found.append(token.translate(UPPER))
        elif kind == "ident":
            found.append('"' + token[1:-1].replace('""', '"'))
        elif kind not in ("space", "end"):
            found.append(token)
        if len(found) == 1 and found[0] not in _VERBS:
            break
    return found


def control(text: str) -> Control | None:
    """Return what one statement does to the transaction, or None if it is an ordinary statement."""
    words = _significant(text)
    if not words:
        return None
    verb, rest = words[0], words[1:]
    if verb == "START" and rest[:1] == ["TRANSACTION"]:
        return Control("begin", modes=" ".join(rest[1:]))
    if verb == "SET" and rest[:1] == ["TRANSACTION"] and rest[1:2] != ["SNAPSHOT"]:
        return Control("modes", modes=" ".join(rest[1:]))
    if verb == "SET" and rest[:1] == ["CONSTRAINTS"]:
        return Control("constraints")
    if verb == "PREPARE" and rest[:1] == ["TRANSACTION"]:
        return Control("two_phase")
    if verb in ("COMMIT", "ROLLBACK") and rest[:1] == ["PREPARED"]:
        return Control("two_phase")
    if rest[:1] in (["WORK"], ["TRANSACTION"]) and verb in _BOUNDARIES:
        rest = rest[1:]
    if verb == "BEGIN":
        return Control("begin", modes=" ".join(rest))
    if verb == "ROLLBACK" and rest[:1] == ["TO"]:
        rest = rest[2:] if rest[1:2] == ["SAVEPOINT"] and len(rest) > 2 else rest[1:]
        return Control("rollback_to", fold(rest[0])) if rest else None
    if verb in ("COMMIT", "END"):
        return Control("commit", chain=rest[:2] == ["AND", "CHAIN"])
    if verb in ("ROLLBACK", "ABORT"):
        return Control("rollback", chain=rest[:2] == ["AND", "CHAIN"])
    if verb == "SAVEPOINT" and rest:
        return Control("savepoint", fold(rest[0]))
    if verb == "RELEASE" and rest:
        rest = rest[1:] if rest[0] == "SAVEPOINT" and len(rest) > 1 else rest
        return Control("release", fold(rest[0]))
    return None
