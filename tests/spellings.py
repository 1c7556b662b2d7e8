"""In how many ways a password may be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus


def _percent(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode())


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "as a URL": lambda s: quote(s, safe=""),
    "as our own URL": lambda s: quote(s, safe="*"),
    "as half a URL": lambda s: quote(s, safe="!$&'()*+,;="),
    "as a URL in small letters": lambda s: "".join(
        c if c.isalnum() and c.isascii() else _percent(c).lower() for c in s
    ),
    "as a URL in which all is encoded": lambda s: "".join(map(_percent, s)),
    "as a form": quote_plus,
    "as a URL in a URL": lambda s: quote(quote(s, safe=""), safe=""),
    "as a URL in an .ini file": lambda s: quote(s, safe="").replace("%", "%%"),
    "as SQL": lambda s: s.replace("'", "''"),
    "as libpq": lambda s: s.replace("\\", "\\\\").replace("'", "\\'"),
    "as JSON": lambda s: json.dumps(s)[1:-1],
    "as Python": lambda s: repr(s)[1:-1],
    "as Python in ASCII": lambda s: ascii(s)[1:-1],
}
