"""Where statements end: against the server's own opinion."""

from __future__ import annotations

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from dbclone.server.server import Server
from dbclone.sql.statements import split

PARTS = [
    "SELECT 1", "SELECT ';'", "SELECT 'it''s; fine'",
    r"SELECT E'\';' || ''", 'SELECT 1 AS ";"', "SELECT $$;$$", "SELECT $x$ $$; $y$ ; $x$",
    "SELECT 1 -- ; not here\n + 1", "SELECT 1 /* ; /* nested ; */ ; */ + 1", "DO $do$ BEGIN PERFORM 1; END $do$",
    "CREATE FUNCTION pg_temp.f{n}() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN" " true THEN 1 END; SELECT 2; END",
    "CREATE FUNCTION pg_temp.g{n}() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    "CREATE TEMP TABLE t{n} (a int); CREATE RULE r AS ON INSERT TO t{n} DO INSTEAD (SELECT" " 1; SELECT 2)",
    "SELECT 1 AS année", "SELECT 'ünï;'", "SELECT $é€$ ; $$ $é€$", "SELECT 1 AS \u00a0", "SELECT 1 AS a$$b, 2 AS c$$",
    "SELECT E'a\\''\n-- it goes on\n'b\\';'", "SELECT 'a'\n'\\', ';'", "SELECT E'a\\'', '\\' || ';'",
    "SELECT 1 -- a ' up to the return\r+ 1",
]  # fmt: skip


SPACE = st.sampled_from(["", " ", "\n", "\t-- c;\n", "/* ; */", "\n\n"])


@given(
    chosen=st.lists(st.tuples(SPACE, st.integers(0, len(PARTS) - 1), SPACE), min_size=1, max_size=8)
)
def test_a_script_falls_into_the_statements_it_was_made_of(
    server: Server, chosen: list[tuple[str, int, str]]
) -> None:
    expected: list[str] = []
    script = ""
    for number, (before, index, after) in enumerate(chosen):
        text = PARTS[index].replace("{n}", str(number))
        expected += text.split("; CREATE RULE")[:1] + [
            "CREATE RULE" + rest for rest in text.split("; CREATE RULE")[1:]
        ]
        script += before + text + after + ";"
    found = list(split(script))
    assert len(found) == len(expected)
    assert all(
        statement.text.startswith(text) for statement, text in zip(found, expected, strict=True)
    )
    with psycopg.connect(server.dsn.url, autocommit=True) as connection:
        for statement in found:
            connection.execute(statement.text.encode())
            assert connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
