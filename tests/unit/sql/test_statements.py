"""Where statements end and which ones control transactions: against hostile text."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbclone.sql.analysis import Control, analyze, control
from dbclone.sql.statements import split, tokens


def test_what_pg_dump_writes_is_understood() -> None:
    text = "\\restrict abc\nSET x = 1;\nCOPY public.t (a, b) FROM stdin;\n1\t;\n2\t'\n\\.\n\nSELECT 2;\n\\unrestrict abc\n\\echo no\n"
    found = list(split(text))
    assert [(s.text, s.line, s.data) for s in found] == [
        ("\\restrict abc", 1, None),
        ("SET x = 1", 2, None),
        ("COPY public.t (a, b) FROM stdin", 3, "1\t;\n2\t'\n"),
        ("SELECT 2", 8, None),
        ("\\unrestrict abc", 9, None),
        ("\\echo no", 10, None),
    ]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("COPY t FROM STDIN;\n1\n\\.\n", ["1\n"]),
        ("COPY t /* FROM */ FROM -- x\n stdin (FORMAT csv);\n1\n\\.  \r\nSELECT 1", ["1\n", None]),
        ("COPY t FROM STDIN; \n\\.x\n\\.", ["\\.x\n"]),
        ("COPY t FROM STDIN", [""]),
        ("COPY t FROM STDIN;", [""]),
        ("COPY (SELECT 'FROM STDIN') TO STDOUT;\n\\.\n", [None, None]),
        ("COPY (SELECT a FROM stdin) TO STDOUT; SELECT 1", [None, None]),
        ('COPY "FROM STDIN" TO STDOUT; SELECT 1', [None, None]),
        ("SELECT a FROM stdin;\n1\n\\.\n", [None, None]),
    ],
)
def test_only_a_copy_from_stdin_takes_data(text: str, data: list[str | None]) -> None:
    assert [statement.data for statement in split(text)] == data


@given(st.text(max_size=60))
def test_any_text_is_split_without_a_loss(text: str) -> None:
    """Whatever it is, it ends, and nothing but semicolons and white space falls between the pieces."""
    for statement in split(text):
        assert statement.text
        assert statement.text in text.replace("\r\n", "\n") or statement.text in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BEGIN", Control("begin")),
        ("begin work", Control("begin")),
        ("START TRANSACTION READ ONLY", Control("begin", modes="READ ONLY")),
        ("/* x */ COMMIT -- y", Control("commit")),
        ("END TRANSACTION", Control("commit")),
        ("COMMIT AND CHAIN", Control("commit", chain=True)),
        ("COMMIT AND NO CHAIN", Control("commit")),
        ("ABORT", Control("rollback")),
        ("ROLLBACK WORK", Control("rollback")),
        ("ROLLBACK TO SAVEPOINT a", Control("rollback_to", "a")),
        ("ROLLBACK WORK TO a", Control("rollback_to", "a")),
        ('ROLLBACK TO "A b"', Control("rollback_to", "A b")),
        ("SAVEPOINT Foo", Control("savepoint", "foo")),
        ("SAVEPOINT Straße_É", Control("savepoint", "straße_É")),
        ("RELEASE SAVEPOINT savepoint", Control("release", "savepoint")),
        ("RELEASE x", Control("release", "x")),
        ("PREPARE TRANSACTION 'x'", Control("two_phase")),
        ("COMMIT PREPARED 'x'", Control("two_phase")),
        ("ROLLBACK PREPARED 'x'", Control("two_phase")),
        ("PREPARE begin AS SELECT 1", None),
        ("SELECT 'commit'", None),
        ('SELECT "begin" FROM rollback', None),
        ("", None),
    ],
)
def test_what_a_statement_does_to_the_transaction(text: str, expected: Control | None) -> None:
    assert control(text) == expected


def test_pieces_are_told_only_where_something_controls() -> None:
    assert analyze("SELECT 1; SELECT 'commit'").controls == ()
    assert [
        (t, c.verb if c else None) for t, c in analyze("COMMIT; SELECT ';' ; BEGIN").controls
    ] == [
        ("COMMIT", "commit"),
        ("SELECT ';'", None),
        ("BEGIN", "begin"),
    ]


class Counted(str):
    """A text that counts the characters that its methods look at."""

    looked = 0

    def count(self, what: str, start: Any = 0, end: Any = None) -> int:
        self.looked += (len(self) if end is None else end) - start
        return super().count(what, start, end)

    def find(self, what: str, start: Any = 0, end: Any = None) -> int:
        found = super().find(what, start, end)
        self.looked += (len(self) if found < 0 else found) - start
        return found

    def __getitem__(self, key: Any) -> str:
        found = super().__getitem__(key)
        self.looked += len(found)
        return found


LONG: dict[str, Callable[[int], str]] = {
    "many statements": lambda n: "SELECT 1;\n" * (n // 10),
    "many of nothing": lambda n: ";" * n,
    "many lines before one statement": lambda n: "-- x\n" * (n // 5) + "SELECT 1",
    "many restrictions": lambda n: "\\restrict x\n" * (n // 12),
    "many copies": lambda n: "COPY t FROM STDIN;\n1\n\\.\n" * (n // 24),
    "a copy of many lines": lambda n: "COPY t FROM STDIN;\n" + "\\.x\n" * (n // 4) + "\\.\n",
    "an insert of many rows": lambda n: "INSERT INTO t VALUES " + "(1,'b')," * (n // 8),
    "a long literal": lambda n: "SELECT '" + "x" * n + "'",
    "a literal of quotes": lambda n: "SELECT '" + "''" * (n // 2) + "'",
    "a literal of escapes": lambda n: "SELECT E'" + "\\'" * (n // 2) + "'",
    "a long name": lambda n: 'SELECT "' + '""x' * (n // 3) + '"',
    "a literal without an end": lambda n: "SELECT 'x' '" + "''" * (n // 2),
    "an escaped literal without an end": lambda n: "SELECT E'" + "\\" * n,
    "a name without an end": lambda n: '"' * 3 + "x" * n,
    "a long comment": lambda n: "/*" + "x" * n + "*/ SELECT 1",
    "a deep comment": lambda n: "/*" * (n // 4) + "*/" * (n // 4) + "SELECT 1",
    "comments without an end": lambda n: "/*" * (n // 2),
    "dollar quotes inside each other": lambda n: "".join(f"$a{i}$ " for i in range(n // 9)),
    "dollars that quote nothing": lambda n: "SELECT " + "$a " * (n // 3) + "$" + "a" * (n // 3),
    "a long dollar quote": lambda n: "DO $a$" + "$b$ $a " * (n // 7) + "$a$",
    "parentheses without an end": lambda n: "(" * n,
    "a body of many statements": lambda n: (
        "CREATE FUNCTION f() BEGIN ATOMIC " + "SELECT 1;" * (n // 9)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_work_and_memory_grow_as_the_text_does(kind: str) -> None:
    """No part of a text is looked at again and again, and none is remembered in much more than its
    own size; a record for each repetition of a pattern's group takes some 200 bytes a character."""
    text = Counted(LONG[kind](20_000))
    tracemalloc.start()
    try:
        for statement in split(text):
            assert statement.line >= 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert text.looked <= 5 * len(text)
    assert peak <= 6 * len(text) + 20_000
    assert [start for _, start, _ in tokens(text)] == [0, *[end for _, _, end in tokens(text)][:-1]]


@pytest.mark.slow
def test_a_script_of_many_megabytes_is_no_matter() -> None:
    """With work or memory that grew faster than the text, this would take many minutes or many
    gigabytes."""
    parts = [
        "SELECT 1;\n" * 100_000,
        "COPY t FROM STDIN;\n",
        "1\tx\n" * 5_000_000,
        "\\.\n",
        "INSERT INTO t VALUES ('",
        "x" * 20_000_000,
        "')",
    ]
    found = list(split("".join(parts)))
    assert len(found) == 100_002
    assert found[-2].data == parts[2]
    assert (found[-1].line, len(found[-1].text)) == (5_100_003, 20_000_025)


def test_of_long_texts_only_the_last_is_kept_for_its_answer() -> None:
    text = "SELECT 'commit" + "x" * 1_000_000 + "'; COMMIT"
    tracemalloc.start()
    try:
        for number in range(5):
            assert [c.verb for _, c in analyze(f"{text} -- {number}").controls if c] == ["commit"]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3_000_000
