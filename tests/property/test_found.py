"""What the property test has found, each as small as it gets. A case: who the client is, a schema,
and tests that run one after another, each a reset and its statements; a statement of connection 2
is a stranger's, who stays connected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from dbclone.server.dsn import Dsn
from dbclone.server.server import Server

from .dump import program
from .life import life
from .programs import Program, Step
from .schemas import Schema

pytestmark = pytest.mark.slow

_SETTING = "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET {}', current_database()); END$$"
_SEEN = "CREATE TABLE a (k int); CREATE MATERIALIZED VIEW m AS SELECT * FROM a"
_OBJECT = "SELECT lo_from_bytea(50000, 'seed'); COMMENT ON LARGE OBJECT 50000 IS 'seed'"
_SET_DEFAULT = """CREATE TABLE public.audit (id serial, what text); CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.audit (what) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TABLE p (k int PRIMARY KEY); CREATE TABLE c (p int REFERENCES p ON DELETE SET DEFAULT);
CREATE TRIGGER n AFTER UPDATE ON c EXECUTE FUNCTION note_it()"""
_NOTED = """CREATE TABLE public.audit (id serial, what text); CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.audit (what) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TABLE p (k int PRIMARY KEY) PARTITION BY RANGE (k); CREATE TABLE p1 PARTITION OF p DEFAULT;
INSERT INTO p VALUES (1), (2); CREATE {} TRIGGER n AFTER INSERT OR DELETE ON p FOR EACH ROW EXECUTE FUNCTION note_it()"""
CASES: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "a column that is called t": (
        "CREATE TABLE a (k int PRIMARY KEY, t text); INSERT INTO a VALUES (1, NULL)",
        [("truncate",)],
    ),
    "a refresh with no data": (_SEEN, [("truncate", "0 REFRESH MATERIALIZED VIEW m WITH NO DATA")]),
    "a concurrent refresh": (
        f"{_SEEN}; CREATE UNIQUE INDEX ON m (k)",
        [("truncate", "0 INSERT INTO a VALUES (1)", "0 REFRESH MATERIALIZED VIEW CONCURRENTLY m")],
    ),
    "a first refresh": (
        f"{_SEEN}; REFRESH MATERIALIZED VIEW m WITH NO DATA",
        [("truncate", "0 REFRESH MATERIALIZED VIEW m")],
    ),
    "an escaped refresh": (_SEEN, [("rollback", "2 REFRESH MATERIALIZED VIEW m WITH NO DATA")]),
    "an attribute renamed": (
        "CREATE TYPE pair AS (a int)",
        [("truncate", "0 ALTER TYPE pair RENAME ATTRIBUTE a TO z")],
    ),
    "pages added to an object": (_OBJECT, [("truncate", "0 SELECT lo_put(50000, 9000, 'far')")]),
    "an object's comment": (_OBJECT, [("truncate", "0 COMMENT ON LARGE OBJECT 50000 IS NULL")]),
    "rounded floats": (
        f"CREATE TABLE a AS SELECT 1 AS k, 0.1::float8 + 0.2 AS f;"
        f" {_SETTING.format('extra_float_digits = -10')}",
        [("truncate", "0 UPDATE a SET k = 2")],
    ),
    "a table called pg_class": (
        f"CREATE SCHEMA s; CREATE TABLE s.pg_class (k int);"
        f" {_SETTING.format('search_path = s, pg_catalog')}",
        [("rollback", "0 SELECT 1")],
    ),
    "a grant on the database": (
        "SELECT 1",
        [
            (
                "truncate",
                "0 DO $$BEGIN EXECUTE format('GRANT TEMP ON DATABASE %I TO pg_monitor',"
                " current_database()); END$$",
            )
        ],
    ),
    "a trigger behind ON DELETE SET DEFAULT": (
        _SET_DEFAULT,
        [("truncate", "0 INSERT INTO p VALUES (1)")],
    ),
    "a trigger that a partition inherits": (
        _NOTED.format(""),
        [("truncate", "0 DELETE FROM p WHERE k = 1")],
    ),
    "a constraint trigger that a partition inherits": (
        _NOTED.format("CONSTRAINT"),
        [("truncate", "0 DELETE FROM p WHERE k = 1")],
    ),
    "an escape into rows that may not be read": (
        "CREATE TABLE a (k int); INSERT INTO a VALUES (1); ALTER TABLE a ENABLE ROW LEVEL"
        " SECURITY, FORCE ROW LEVEL SECURITY;"
        " CREATE POLICY p ON a USING (true)",
        [("rollback", "2 INSERT INTO a VALUES (2)")],
    ),
    "statements lost to a prepared transaction": (
        "CREATE TABLE a (k serial)",
        [
            ("truncate", "0 BEGIN", "0 INSERT INTO a VALUES (1)", "0 PREPARE TRANSACTION 'p'"),
            ("truncate", "0 INSERT INTO a VALUES (1)"),
        ],
    ),
}


@pytest.fixture(params=["superuser", "plain"])
def client(request: pytest.FixtureRequest, server: Server, role: Dsn) -> Iterator[Server]:
    """The server as a superuser, and as a role that may create databases and nothing else."""
    if request.param == "superuser":
        yield server
        return
    with Server.open(replace(server.settings, url=role.url)) as opened:
        yield opened


@pytest.mark.parametrize("name", CASES)
def test_found(server: Server, client: Server, name: str) -> None:
    text, tests = CASES[name]
    with life(client, Schema(text, (), (), ()), server, program(server)) as lived:
        for reset, *statements in tests:
            steps = tuple(Step(int(statement[0]), statement[2:]) for statement in statements)
            lived.live(Program(reset, True, any(step.connection == 2 for step in steps), steps))
        lived.end()
        assert not [note for note in lived.clone.report.notes if "InvalidSqlStatementName" in note]
