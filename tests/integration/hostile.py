"""Names and passwords that mean harm, for tests: fragments of SQL, formats, shells, terminals and
encodings, in any order."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FRAGMENTS = [
    '"', "'", '""', "''", "`", "\\", "\\'", "$$", "$1", "%", "%s", "%(a)s", "%%", "{}", "{0}", "{a!r}", ";", "--", "/*", "*/", ":x",
    ' "; DROP DATABASE victim; --', "'; DROP DATABASE victim; --", '"."', ".", ",", "=", "=''", "/", "//", "@", "#", "?", "&", "+",
    "|", "$(touch x)", "`touch x`", " ", "  ", "\t", "\n", "\r", "\x1b[2J", "\x07", "\x7f", "\x9b31m", "\u202e", "\u2028",
    "\ufeff", "\u200b", "é", "É", "ß", "ü" * 40, "😀", "😀" * 16, "İ", "漢字", "a\u0301", "A", "Shop", "x" * 63, "x" * 64, "user",
    "select", "SELECT", "table", "null", "public", "pg_catalog", "template0", "postgres", "dbclone_", "-d", "--all", "*", "[a]",
    "~", "..", "C:\\", "0", "main",
]  # fmt: skip

#: What PostgreSQL and UTF-8 can hold.
NAMES = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join)

#: Also what they cannot: NUL, and halves of characters such as a path that is no UTF-8 gives.
ANYTHING = (
    NAMES
    | st.text(max_size=70)
    | st.lists(st.sampled_from([*FRAGMENTS, "\0", "\ud800", "\udcff"]), max_size=6).map("".join)
    | st.sampled_from(["", "\0", "\udc80", "a\0b", "\udcff/", "x" * 5000])
)


def examples(count: int) -> settings:
    """Return settings for so many examples; the environment variable TEST_EXAMPLES multiplies them."""
    number = max(1, round(count * float(os.environ.get("TEST_EXAMPLES", "1"))))
    return settings(
        max_examples=number,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
