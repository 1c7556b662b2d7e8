"""What a statement needs and may do, told from its text: whether it may write, erring on the side of yes; whether it runs only
inside a transaction block, or only outside.

What text cannot tell is a function of the project's own that writes when it is selected: its name is looked for in the text.
"""

from __future__ import annotations

import re
from functools import lru_cache


def alters(text: str) -> bool:
    """Whether a statement may change objects that prepared statements use. PostgreSQL plans these anew after a change, but fails if
    their results have other types then, or if a type of theirs was made anew (PostgreSQL documentation, sql-prepare)."""
    return not text.lstrip()[:9].upper().startswith(_HARMLESS) or ";" in text.rstrip("; \t\r\n")


# How statements begin that leave objects as they are: what was prepared before them means the same after they are rolled back.
_HARMLESS = (
    *("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "TABLE", "(", "COPY", "FETCH", "MOVE", "CLOSE", "DECLARE"),
    *("SET", "SHOW", "RESET", "EXPLAIN", "LOCK", "TRUNCATE", "NOTIFY", "LISTEN", "BEGIN", "START", "COMMIT", "END", "ROLLBACK"),
    *("ABORT", "SAVEPOINT", "RELEASE"),
)

# What can only look. SET and the like are about the session, FETCH about a cursor that was declared before.
_READS = frozenset(
    ("SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN", "WITH", "SET", "RESET", "FETCH", "MOVE", "CLOSE", "DECLARE", "DEALLOCATE")
)
_FIRST = re.compile(r"[\s(]*([A-Za-z]*)")
# FOR UPDATE and FOR SHARE lock rows, ANALYZE runs what is explained; a statement after another is not looked at.
_MAY_WRITE = re.compile(
    r"\b(INSERT|UPDATE|DELETE|MERGE|INTO|CALL|EXECUTE|ANALYZE|ANALYSE|FOR\s+(KEY\s+)?SHARE|SETVAL|lo_\w+|pg_advisory\w+)\b|;\s*\S",
    re.I,
)
# Functions of the project and of its extensions that are not promised to leave the database alone.
WRITERS = "SELECT DISTINCT lower(proname::text) FROM pg_catalog.pg_proc WHERE oid >= 16384 AND provolatile = 'v' AND prokind <> 'a'"
_WORD = re.compile(r"[A-Za-z_]\w*")


def reads_only(text: str | None, writers: frozenset[str] = frozenset()) -> bool:
    """Return whether a statement only reads; False if that is not sure, or `text` is not known.

    Arguments: `writers`, names of functions that may write, from `WRITERS`.
    """
    return text is not None and (_remembered(text, writers) if len(text) < 10_000 else _reads(text, writers))


def _reads(text: str, writers: frozenset[str]) -> bool:
    first = _FIRST.match(text)
    word = first[1].upper() if first else ""
    if (word not in _READS and text.strip(" \t\r\n;")) or _MAY_WRITE.search(text):
        return False
    return not writers or writers.isdisjoint(_WORD.findall(text.lower()))


_remembered = lru_cache(maxsize=1024)(_reads)
_PURE = re.compile(r"[\s(]*(SELECT|VALUES|TABLE)\b(?!.*\bset_config\b)", re.I | re.S)


def leaves_nothing(text: str | None, writers: frozenset[str] = frozenset()) -> bool:
    """Return whether undoing a statement would change nothing, neither in the database nor in the session. Arguments: `text`, None
    if it is not known; `writers`, names of functions that may write, from `WRITERS`."""
    return text is not None and reads_only(text, writers) and bool(_PURE.match(text))


def looks(text: str | None) -> bool:
    """Return whether a statement looks at data, so that the server takes a snapshot for it; True if `text` is not known."""
    first = _FIRST.match(text) if text is not None else None
    return first is None or first[1].upper() not in (
        "",
        "SET",
        "SHOW",
        "RESET",
        "LOCK",
        "LISTEN",
        "UNLISTEN",
        "NOTIFY",
        "DEALLOCATE",
    )


_ONLY_INSIDE = re.compile(r"\s*(LOCK|DECLARE)\b(?!.*;\s*\S)", re.I | re.S)
_HELD = re.compile(r"\bWITH\s+HOLD\b", re.I)
# PreventInTransactionBlock in the server's source, and LISTEN, which hears nothing until its transaction has ended.
_NEVER_INSIDE = re.compile(
    r"""\s*(VACUUM|(?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE)|ALTER\s+SYSTEM|CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY
    |DROP\s+INDEX\s+CONCURRENTLY|REINDEX\s+(?:\([^)]*\)\s*)?(?:DATABASE|SYSTEM|SCHEMA|(?:TABLE|INDEX)\s+CONCURRENTLY)
    |(?:CREATE|DROP)\s+SUBSCRIPTION|CLUSTER\s*(?:;|$)|DISCARD\s+ALL|LISTEN)\b""",
    re.I | re.X,
)


def only_inside(text: str) -> str:
    """Return the command of a statement that the server refuses outside a transaction block, or an empty string."""
    match = _ONLY_INSIDE.match(text)
    if not match or (match[1].upper() == "DECLARE" and _HELD.search(text)):
        return ""
    return {"LOCK": "LOCK TABLE", "DECLARE": "DECLARE CURSOR"}[match[1].upper()]


def never_inside(text: str) -> str:
    """Return the command of a statement that cannot run, or does nothing, inside a transaction block, or an empty string."""
    match = _NEVER_INSIDE.match(text)
    return " ".join(match[1].upper().split()) if match else ""
