"""Where statements end and which ones control transactions: against hostile text, and against the server's own opinion."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbclone.server import Server
from dbclone.statements import Control, control, controls, split

PARTS = [
    "SELECT 1", "SELECT ';'", "SELECT 'it''s; fine'",
    r"SELECT E'\';' || ''", 'SELECT 1 AS ";"', "SELECT $$;$$", "SELECT $x$ $$; $y$ ; $x$",
    "SELECT 1 -- ; not here\n + 1", "SELECT 1 /* ; /* nested ; */ ; */ + 1", "DO $do$ BEGIN PERFORM 1; END $do$",
    "CREATE FUNCTION pg_temp.f{n}() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
    "CREATE FUNCTION pg_temp.g{n}() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    "CREATE TEMP TABLE t{n} (a int); CREATE RULE r AS ON INSERT TO t{n} DO INSTEAD (SELECT 1; SELECT 2)",
    "SELECT 1 AS année", "SELECT 'ünï;'",
]  # fmt: skip
SPACE = st.sampled_from(["", " ", "\n", "\t-- c;\n", "/* ; */", "\n\n"])


@given(chosen=st.lists(st.tuples(SPACE, st.integers(0, len(PARTS) - 1), SPACE), min_size=1, max_size=8))
def test_a_script_falls_into_the_statements_it_was_made_of(server: Server, chosen: list[tuple[str, int, str]]) -> None:
    expected: list[str] = []
    script = ""
    for number, (before, index, after) in enumerate(chosen):
        text = PARTS[index].replace("{n}", str(number))
        expected += text.split("; CREATE RULE")[:1] + ["CREATE RULE" + rest for rest in text.split("; CREATE RULE")[1:]]
        script += before + text + after + ";"
    found = list(split(script))
    assert len(found) == len(expected)
    assert all(statement.text.startswith(text) for statement, text in zip(found, expected, strict=True))
    with psycopg.connect(server.dsn.url, autocommit=True) as connection:
        for statement in found:
            connection.execute(statement.text.encode())
            assert connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_what_pg_dump_writes_is_understood() -> None:
    text = (
        "\\restrict abc\nSET x = 1;\nCOPY public.t (a, b) FROM stdin;\n1\t;\n2\t'\n\\.\n\nSELECT 2;\n\\unrestrict abc\n\\echo no\n"
    )
    found = list(split(text))
    assert [(s.text, s.line, s.data) for s in found] == [
        ("SET x = 1", 2, None),
        ("COPY public.t (a, b) FROM stdin", 3, "1\t;\n2\t'\n"),
        ("SELECT 2", 8, None),
        ("\\echo no", 10, None),
    ]


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
    assert controls("SELECT 1; SELECT 'commit'") == ()
    assert [(t, c.verb if c else None) for t, c in controls("COMMIT; SELECT ';' ; BEGIN")] == [
        ("COMMIT", "commit"),
        ("SELECT ';'", None),
        ("BEGIN", "begin"),
    ]
