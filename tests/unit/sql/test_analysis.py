"""What is told of a statement by its text, and that comments change none of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbclone.sql.analysis import Analysis, analyze

ANSWERS = (
    "verb",
    "empty",
    "takes_snapshot",
    "only_inside",
    "never_inside",
    "alters",
    "prepares",
    "deallocates",
    "discards_all",
    "declares",
)
TEXTS = (
    "",
    " ; ",
    "SELECT count(*) FROM t",
    "(SELECT 1) UNION (SELECT 2)",
    "SELECT 1 FOR KEY SHARE",
    "WITH x AS (INSERT INTO t VALUES (1) RETURNING v) SELECT * FROM x",
    "EXPLAIN ANALYZE SELECT 1",
    "LOCK TABLE t",
    "LISTEN news",
    "VACUUM t",
    "CREATE DATABASE x",
    "CREATE UNIQUE INDEX CONCURRENTLY i ON t (v)",
    "REINDEX (VERBOSE) TABLE CONCURRENTLY t",
    'DECLARE "a""b" CURSOR FOR SELECT 1',
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "PREPARE p AS SELECT 1",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "ALTER TABLE t ADD w int",
    "SELECT set_config('a.b', 'c', false)",
    "SELECT place_order(1)",
    "START TRANSACTION READ ONLY",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "ROLLBACK TO s",
    "COMMIT; SELECT 1; BEGIN",
)
COMMENTS = (
    "-- name: q\n",
    "/* a */",
    "/* a /* nested ; */ */ ",
    "--\n--\r\n",
    " /* ' */ ",
    "-- $$ VACUUM\n\t",
)


def told(text: str) -> tuple[object, ...]:
    asked, writers = Analysis(text), frozenset({"place_order"})
    controls = [
        (control.verb, control.name, control.modes) if control else None
        for _, control in asked.controls
    ]
    return (
        *(getattr(asked, name) for name in ANSWERS),
        asked.reads_only(writers),
        asked.leaves_nothing(writers),
        controls,
    )


@pytest.mark.parametrize("text", TEXTS)
def test_a_comment_before_a_statement_changes_nothing(text: str) -> None:
    for comment in COMMENTS:
        assert told(comment + text) == told(text), comment


@given(
    st.sampled_from(TEXTS), st.lists(st.sampled_from(COMMENTS), min_size=1, max_size=4), st.data()
)
def test_comments_in_the_place_of_spaces_change_nothing(
    text: str, comments: list[str], data: st.DataObject
) -> None:
    words = text.split(" ")
    between = [
        data.draw(st.sampled_from([" ", *(f" {comment} " for comment in comments)]))
        for _ in words[1:]
    ]
    assert told(words[0] + "".join(a + b for a, b in zip(between, words[1:], strict=True))) == told(
        text
    )


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '-- no comment', 1",
        "SELECT '/* none */'",
        'SELECT "a--b"',
        "SELECT $$ -- $$",
        "SELECT $x$ /* $x$",
        "SELECT E'\\'--'",
    ],
)
def test_what_is_quoted_is_no_comment(text: str) -> None:
    assert Analysis(text).plain == text


@pytest.mark.parametrize(
    ("text", "reads", "nothing", "looks"),
    [
        ("SELECT 1", True, True, True),
        ("SELECT set_config('a.b', 'c', false)", True, False, True),
        ("SELECT nextval('s'); INSERT INTO t VALUES (1)", False, False, True),
        ("SELECT setval('s', 1)", False, False, True),
        ("TABLE t", True, True, True),
        ("SHOW search_path", True, False, False),
        ("SET search_path = a", True, False, False),
        ("LOCK TABLE t", False, False, False),
        ("INSERT INTO t VALUES (1)", False, False, True),
        ("SELECT place_order(1)", False, False, True),
        ("EXPLAIN SELECT 1", True, False, True),
        ("CALL p()", False, False, True),
        ("", True, False, False),
    ],
)
def test_what_reads_and_what_looks(text: str, reads: bool, nothing: bool, looks: bool) -> None:
    asked, writers = analyze(text), frozenset({"place_order"})
    assert (asked.reads_only(writers), asked.leaves_nothing(writers), asked.takes_snapshot) == (
        reads,
        nothing,
        looks,
    )


def test_of_a_text_that_is_not_known_the_worst_is_believed() -> None:
    asked = analyze(None)
    assert (asked.reads_only(), asked.leaves_nothing(), asked.takes_snapshot, asked.empty) == (
        False,
        False,
        True,
        False,
    )
    assert (asked.only_inside, asked.never_inside, asked.declares) == ("", "", ())


def test_the_same_text_is_looked_at_once() -> None:
    assert analyze("SELECT 12345") is analyze("SELECT 12345")
    long = "SELECT 1" + " " * 20_000
    assert analyze(long) is analyze(long)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("SELECT 1", True),
        ("  (select count(*) from t) union values (1)", True),
        ('WITH a AS (SELECT 1) SELECT "x y" FROM a WHERE b IN (1, 2)', True),
        ("SELECT CAST(%(a)s AS VARCHAR(10)), pg_catalog.version()", True),
        ("show search_path", True),
        ("WITH a AS (DELETE FROM t RETURNING a) SELECT * FROM a", False),
        ("SELECT a INTO b FROM t", False),
        ("SELECT a FROM t FOR UPDATE", False),
        ("SELECT place_order()", False),
        ("SELECT 1; DROP TABLE t", False),
        ("EXPLAIN ANALYZE DELETE FROM t", False),
        ("INSERT INTO t VALUES (1)", False),
        ("COPY t FROM STDIN", False),
        ("", True),
        (None, False),
    ],
)
def test_what_is_known_to_read_only(text: str | None, reads: bool) -> None:
    assert analyze(text).reads_only(frozenset({"place_order"})) is reads


@pytest.mark.parametrize(
    ("text", "leaves"),
    [
        ("DROP DATABASE x", True),
        ("/* a */ create  database x", True),
        ("ALTER SYSTEM SET work_mem = '1MB'", True),
        ("DROP TABLESPACE x", True),
        ("CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p", True),
        ("VACUUM t", False),
        ("LISTEN x", False),
        ("SELECT 'DROP DATABASE x'", False),
    ],
)
def test_what_leaves_the_database(text: str, leaves: bool) -> None:
    assert analyze(text).leaves_database is leaves
