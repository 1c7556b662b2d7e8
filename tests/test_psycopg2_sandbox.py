"""psycopg2 in a sandbox: the same code gives the same results, rows and errors there and for real."""

from __future__ import annotations

import contextlib
import decimal
import gc
import io
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from dbclone.errors import SandboxLimit
from dbclone.reset.rollback import Rollback
from dbclone.reset.sandbox import Session
from dbclone.server import Server

psycopg2 = pytest.importorskip("psycopg2")
extensions = pytest.importorskip("psycopg2.extensions")
extras = pytest.importorskip("psycopg2.extras")
pool = pytest.importorskip("psycopg2.pool")
gates = pytest.importorskip("dbclone.reset.psycopg2_sandbox")

Connect = Callable[..., Any]
SCHEMA = """
    CREATE TABLE t (a int UNIQUE, b text);
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TYPE pair AS (x int, y text);
"""


def _database(server: Server) -> str:
    name = f"psycopg2_{uuid.uuid4().hex[:8]}"
    server.connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    found = server.database(name).url
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute(SCHEMA)
    return found


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return _database(server)


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A sandbox in which one level is open; afterwards the table must be empty for everybody."""
    with psycopg.connect(url, autocommit=True) as real:
        found = Session(real)
        level = Rollback(found)
        level.before()
        yield found
        assert level.after().spoiled == ""
        with psycopg.connect(url) as outside:
            assert outside.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.fixture
def connect(session: Session, url: str) -> Iterator[Connect]:
    """Open psycopg2 connections into the sandbox."""
    with gates.Gate(session) as gate:
        yield lambda **options: gate.connect(url, **options)


def rows(cursor: Any) -> list[Any]:
    return [tuple(row) for row in cursor.fetchall()]


class Told:
    """What a program saw, in order: results, and errors by class, code and text."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, *what: Any) -> None:
        self.seen.append(what)

    @contextlib.contextmanager
    def error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            diag = getattr(error, "diag", None)
            names = ("severity", "message_primary", "message_detail", "statement_position", "constraint_name", "context")
            said = [getattr(diag, name, None) for name in names]
            self(type(error).__name__, str(error), getattr(error, "pgcode", None), getattr(error, "pgerror", None), said)
        else:
            self("no error")


def blocks(connect: Connect, told: Told) -> None:
    """Implicit transactions, commit and rollback."""
    connection, other = connect(), connect()
    cursor = connection.cursor()
    told(connection.get_transaction_status(), connection.status, connection.autocommit)
    cursor.execute("INSERT INTO t VALUES (%s, %s)", (1, "x"))
    told(connection.get_transaction_status(), connection.status, cursor.rowcount, cursor.statusmessage)
    connection.commit()
    told(connection.get_transaction_status(), connection.status)
    cursor.execute("INSERT INTO t VALUES (2)")
    connection.rollback()
    with told.error():
        cursor.execute("INSERT INTO t VALUES (1)")
    told(connection.get_transaction_status())
    with told.error():
        cursor.execute("SELECT 1")
    connection.commit()
    told(connection.get_transaction_status())
    with told.error(), connection, connection.cursor() as inner:
        inner.execute("INSERT INTO t VALUES (3)")
        raise ZeroDivisionError
    with connection, connection.cursor() as inner:
        inner.execute("INSERT INTO t VALUES (4)")
    cursor = other.cursor()
    cursor.execute("SELECT a FROM t ORDER BY a")
    told(rows(cursor))
    other.close()
    told(other.closed)
    for use in (other.cursor, other.commit, other.cancel):
        with told.error():
            use()


def autocommit(connect: Connect, told: Told) -> None:
    """Each statement by itself; a failure does not poison what follows. D3."""
    connection = connect()
    connection.autocommit = True
    cursor = connection.cursor()
    for value in (1, 1, 2):
        with told.error():
            cursor.execute("INSERT INTO t VALUES (%s)", (value,))
        told(connection.get_transaction_status(), connection.status)
    with told.error():
        cursor.execute("INSERT INTO t VALUES (5); INSERT INTO t VALUES (1)")
    with told.error():
        cursor.execute("SELEC 1")
    cursor.execute("SELECT a FROM t ORDER BY a")
    told(rows(cursor))
    connection.autocommit = False
    cursor.execute("DELETE FROM t")
    with told.error():
        connection.autocommit = True
    connection.rollback()
    cursor.execute("SELECT count(*) FROM t")
    told(rows(cursor))


def sql_text(connect: Connect, told: Told) -> None:
    """Transaction control as SQL text. D2."""
    connection = connect()
    connection.autocommit = True
    cursor = connection.cursor()

    def run(text: str) -> None:
        with told.error():
            cursor.execute(text)
        told(cursor.statusmessage, connection.get_transaction_status(), cursor.description is None)

    for text in (
        "BEGIN",
        "INSERT INTO t VALUES (1)",
        "SAVEPOINT a",
        "INSERT INTO t VALUES (1)",
        "SELECT 1",
        "ROLLBACK TO SAVEPOINT a",
        "SELECT 1",
        "RELEASE a",
        "RELEASE a",
        "COMMIT",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT b",
        "BEGIN; INSERT INTO t VALUES (2); COMMIT; BEGIN; INSERT INTO t VALUES (3); ROLLBACK",
        "START TRANSACTION READ ONLY",
        "BEGIN",
        "INSERT INTO t VALUES (4)",
        "ABORT",
        "BEGIN; INSERT INTO t VALUES (5); COMMIT AND CHAIN; INSERT INTO t VALUES (6); SELECT x",
        "COMMIT",
        "BEGIN; INSERT INTO t VALUES (7); SELEC 1",
        "",
        "/* nothing */ ;",
    ):
        run(text)
    connection.rollback()
    cursor.execute("SELECT a FROM t ORDER BY a")
    told(rows(cursor), [notice.splitlines()[0] for notice in connection.notices])


def settings(connect: Connect, told: Told) -> None:
    """set_session, isolation levels, encodings, reset."""
    connection = connect()
    cursor = connection.cursor()
    connection.set_session(readonly=True)
    with told.error():
        cursor.execute("INSERT INTO t VALUES (1)")
    connection.rollback()
    connection.set_session(readonly=False, autocommit=True)
    told(connection.autocommit, connection.isolation_level, connection.readonly)
    connection.set_isolation_level(extensions.ISOLATION_LEVEL_SERIALIZABLE)
    cursor.execute("INSERT INTO t VALUES (2, 'é')")
    told(connection.autocommit, connection.get_transaction_status())
    connection.commit()
    with told.error():
        connection.set_client_encoding("nonsense")
    connection.set_client_encoding("LATIN1")
    told(connection.encoding, connection.get_parameter_status("client_encoding"))
    cursor.execute("SELECT b, %s FROM t", ("ü",))
    told(rows(cursor))
    connection.reset()
    told(connection.encoding, connection.status, connection.get_transaction_status())
    latin = connect(client_encoding="latin1")
    cursor = latin.cursor()
    cursor.execute("SELECT b FROM t")
    told(latin.encoding, rows(cursor), latin.server_version, latin.protocol_version, latin.info.dbname)
    cursor = connect().cursor()
    cursor.execute("SELECT b, 'ß' FROM t")
    told(rows(cursor))


def cursors(connect: Connect, told: Told) -> None:
    """Every kind of cursor, also on the server's side."""
    connection = connect()
    cursor = connection.cursor()
    extras.execute_values(cursor, "INSERT INTO t VALUES %s", [(n, str(n)) for n in range(50)], page_size=7)
    extras.execute_batch(cursor, "UPDATE t SET b = b || %s WHERE a = %s", [("!", n) for n in range(9)])
    told(extras.execute_values(cursor, "INSERT INTO t VALUES %s RETURNING a", [(60,), (61,)], fetch=True))
    told(cursor.mogrify("SELECT %s, %(x)s" if False else "SELECT %s", (["it's", None],)))
    for kind in (extras.DictCursor, extras.RealDictCursor, extras.NamedTupleCursor, extras.LoggingCursor, None):
        if kind is extras.LoggingCursor:
            continue
        for name in (None, "named"):
            with connection.cursor(name, cursor_factory=kind) as found:
                found.execute("SELECT a, b AS other FROM t ORDER BY a LIMIT 3")
                told(found.fetchone(), found.fetchmany(1), found.rownumber, found.query)
                told([dict(row) if kind is extras.RealDictCursor else tuple(row) for row in found.fetchall()])
                told(found.description, found.name, isinstance(found, kind or extensions.cursor), type(found).__name__)
    scroll = connection.cursor("scrolling", scrollable=True)
    scroll.execute("SELECT a FROM t ORDER BY a")
    scroll.scroll(10)
    told(scroll.fetchone())
    scroll.scroll(-5)
    told([next(scroll) for _ in range(2)])
    connection.commit()
    with told.error():
        scroll.fetchone()
    held = connection.cursor("held", withhold=True)
    held.execute("SELECT a FROM t ORDER BY a")
    connection.commit()
    told(held.fetchmany(2))
    held.close()
    connection.autocommit = True
    with told.error():
        connection.cursor("refused").execute("SELECT 1")
    held = connection.cursor("held", withhold=True)
    held.execute("SELECT a FROM t ORDER BY a")
    with told.error():
        cursor.execute("SELECT 1/0")
    told(held.fetchmany(2))
    with told.error():
        cursor.execute("DECLARE c CURSOR FOR SELECT 1")
    with told.error():
        cursor.executemany("INSERT INTO t VALUES (%s)", [(70,), (70,)])
    cursor.execute("SELECT count(*) FROM t")
    told(rows(cursor))
    with connect(cursor_factory=extras.RealDictCursor).cursor() as found:
        found.execute("SELECT 1 AS one")
        told(found.fetchall())
    with connect(connection_factory=extras.NamedTupleConnection).cursor() as found:
        found.execute("SELECT 1 AS one")
        told(found.fetchone().one)
    cursor.callproc("upper", ["x"])
    told(rows(cursor))


def types(connect: Connect, told: Told) -> None:
    """Values go there and back; types may be registered for a connection or a cursor."""
    connection = connect()
    cursor = connection.cursor()
    extras.register_uuid(conn_or_curs=connection)
    extras.register_composite("pair", connection)
    some = uuid.UUID(int=7)
    for value in (None, True, 1, 1.5, decimal.Decimal("1.20"), "it's", b"\x00\xff", [1, 2], ["a", None], some, extras.Json({"a": 1})):
        cursor.execute("SELECT %s, %s::text", (value, value))
        told([bytes(x) if isinstance(x, memoryview) else x for x in cursor.fetchone()], cursor.description[0].type_code)
    cursor.execute("SELECT '{\"a\": [1]}'::jsonb, '[1,5)'::int4range, now()::date > '2020-01-01', ROW(1, 'z')::pair, 'ok'::mood")
    told(cursor.fetchone())
    cursor.execute("SELECT oid FROM pg_type WHERE typname = 'mood'")
    (oid,) = cursor.fetchone()
    extensions.register_type(extensions.new_type((oid,), "MOOD", lambda text, _: text and text.upper()), connection)
    cursor.execute("SELECT 'ok'::mood, ''::text, NULL::mood, repeat('x', 100000)")
    told(cursor.fetchone())
    cursor.execute("SELECT")
    told(cursor.rowcount, cursor.description, cursor.fetchall())
    extras.register_default_json(connection, loads=lambda text: ["own", text])
    cursor.execute("SELECT '1'::json; SELECT '2'::json")
    told(cursor.fetchall())
    cursor.execute("DO $$ BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'again' USING HINT = 'h'; END $$")
    told(connection.notices)
    with told.error():
        cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'ZZ001', DETAIL = 'd', HINT = 'h', COLUMN = 'c'; END $$")


def copies(connect: Connect, told: Told) -> None:
    """COPY both ways, failing ones, and one whose data come from a query of the same application."""
    connection, other = connect(), connect()
    cursor = connection.cursor()
    cursor.copy_from(io.StringIO("1\tx\n2\t\\N\n"), "t")
    told(cursor.rowcount, cursor.statusmessage)
    cursor.copy_expert("COPY t FROM STDIN WITH (FORMAT csv)", io.BytesIO(b"3,y\n"))
    out = io.StringIO()
    cursor.copy_to(out, "t", null="-")
    told(out.getvalue(), cursor.rowcount)
    binary = io.BytesIO()
    cursor.copy_expert("COPY t TO STDOUT (FORMAT binary)", binary)
    told(binary.getvalue())
    with told.error():
        cursor.copy_expert("COPY nothing FROM STDIN", io.StringIO(""))
    connection.commit()
    for data in ("1\tx\n", "x\n", "4\ty\n"):
        with told.error():
            cursor.copy_from(io.StringIO(data), "t")
        connection.commit()

    class Failing:
        def read(self, size: int) -> str:
            raise ZeroDivisionError("in the middle")

    with told.error():
        cursor.copy_from(Failing(), "t")
    connection.rollback()
    with told.error():
        cursor.copy_expert("SELECT 1", io.StringIO(""))
    connection.rollback()
    connection.autocommit = True
    with told.error():
        cursor.copy_from(io.StringIO("5\n"), "t", columns=["a"])
    big = "".join(f"{n}\t{'é' * 50}\n" for n in range(1000, 21000))
    cursor.copy_from(io.StringIO(big), "t")
    told(cursor.rowcount)
    cursor = other.cursor()
    cursor.execute("SELECT count(*), sum(length(b)) FROM t")
    told(rows(cursor))


def large_objects(connect: Connect, told: Told) -> None:
    """They do not go through query strings."""
    connection = connect()
    large = connection.lobject(0, "wb")
    told(large.write(b"hello world"), large.tell(), large.seek(6))
    oid = large.oid
    large.close()
    connection.commit()
    large = connection.lobject(oid, "rwb")
    told(large.read(5), large.seek(0), large.read())
    large.truncate(3)
    told(large.seek(0), large.read())
    with told.error():
        connection.lobject(1, "rb")
    connection.rollback()
    large = connection.lobject(oid, "rb")
    told(large.read())
    large.unlink()
    connection.commit()
    with told.error():
        connection.lobject(oid, "rb")


def pools(connect: Connect, told: Told) -> None:
    """psycopg2's own pool gives back what is clean."""
    ways = {name: value for name, value in connect.__dict__.items()}
    del ways
    first = connect()
    cursor = first.cursor()
    cursor.execute("INSERT INTO t VALUES (1)")
    first.reset()
    cursor.execute("SELECT count(*) FROM t")
    told(rows(cursor), first.info.transaction_status)


def forgotten(connect: Connect, told: Told) -> None:
    """D9: what is not committed is gone when the connection is closed, or nobody has it any more."""

    def write(value: int, close: bool, commit: bool) -> None:
        connection = connect()
        connection.cursor().execute("INSERT INTO t VALUES (%s)", (value,))
        if commit:
            connection.commit()
        if close:
            connection.close()

    look = connect()
    look.autocommit = True
    cursor = look.cursor()
    for number, (close, commit) in enumerate([(True, True), (True, False), (False, False), (False, True)]):
        write(number, close, commit)
        gc.collect()
        cursor.execute("SELECT a FROM t ORDER BY a")
        told(rows(cursor))


PROGRAMS = [blocks, autocommit, sql_text, settings, cursors, types, copies, large_objects, forgotten]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_sees_the_same_sandboxed_and_for_real(
    program: Callable[[Connect, Told], None], connect: Connect, server: Server
) -> None:
    fresh = _database(server)
    real, sandboxed = Told(), Told()
    opened: list[Any] = []

    def really(**options: Any) -> Any:
        opened.append(psycopg2.connect(fresh, **options))
        return opened[-1] if program is not forgotten else opened.pop()

    program(really, real)
    for connection in opened:
        connection.close()
    program(connect, sandboxed)
    for there, here in zip(real.seen, sandboxed.seen, strict=True):
        assert here == there
