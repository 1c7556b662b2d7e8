"""Statements that the server treats in another way outside a transaction block than inside one. Pure text, no connection.

In a sandbox there always is a block, so the server itself would not say so.
"""

from __future__ import annotations

import re

_NEEDS_BLOCK = re.compile(r"\s*(DECLARE\b(?!.*\bWITH\s+HOLD\b)|LOCK\b)[^;]*;?\s*\Z", re.I | re.S)
_DISCARD = re.compile(r"\s*DISCARD\s+ALL\s*;?\s*\Z", re.I)
_DISCARDED = "SET SESSION AUTHORIZATION DEFAULT; RESET ALL"


def refused(text: str) -> str:
    """Return the server's words for refusing a query string that is not in a block, or an empty string."""
    found = _NEEDS_BLOCK.match(text)
    if found is None:
        return ""
    what = "LOCK TABLE" if found[1].upper() == "LOCK" else "DECLARE CURSOR"
    return f"{what} can only be used in transaction blocks"


def instead(text: str) -> str:
    """Return what to run for a query string outside any block: for DISCARD ALL, which is refused in one, a part of what it does.

    Temporary tables, locks and prepared statements stay, for they may be another connection's of the same sandbox.
    """
    return _DISCARDED if _DISCARD.match(text) else text
