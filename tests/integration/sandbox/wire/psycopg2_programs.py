"""Programs over psycopg2 that tell what they saw, to be run sandboxed and for real: see
test_psycopg2."""

from __future__ import annotations

import contextlib
import gc
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg2.extensions as extensions

from dbclone.sandbox.session import Session
from dbclone.sandbox.wire.psycopg2 import Connector
from dbclone.server.server import Server

Connect = Callable[..., Any]
SCHEMA = """
    CREATE TABLE t (a int UNIQUE, b text);
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TYPE pair AS (x int, y text);
"""


def database(server: Server) -> str:
    """Make a database with SCHEMA; return its URL."""
    name = f"psycopg2_{uuid.uuid4().hex[:8]}"
    server.connection.execute(
        psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
    )
    found = server.database(name).url
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute(SCHEMA)
    return found


@contextlib.contextmanager
def connecting(session: Session, url: str) -> Iterator[Connect]:
    """Yield a function that opens psycopg2 connections into a sandbox; afterwards nothing of it
    must be left."""
    with Connector(session) as gate:
        yield lambda **options: gate.connect(url, **options)
    assert not [thread for thread in threading.enumerate() if thread.name == "dbclone sandbox"]


def insert(connection: Any, value: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (%s)", (value,))


def count(session: Session) -> int:
    """Count the rows as the test's own psycopg 3 connection sees them."""
    with session.connect(autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM t").fetchone()
        assert row is not None
        return int(row[0])


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
            names = (
                "severity",
                "message_primary",
                "message_detail",
                "statement_position",
                "constraint_name",
                "context",
            )
            said = [getattr(diag, name, None) for name in names]
            self(
                type(error).__name__,
                str(error),
                getattr(error, "pgcode", None),
                getattr(error, "pgerror", None),
                said,
            )
        else:
            self("no error")


def blocks(connect: Connect, told: Told) -> None:
    """Implicit transactions, commit and rollback."""
    connection, other = connect(), connect()
    cursor = connection.cursor()
    told(connection.get_transaction_status(), connection.status, connection.autocommit)
    cursor.execute("INSERT INTO t VALUES (%s, %s)", (1, "x"))
    told(
        connection.get_transaction_status(),
        connection.status,
        cursor.rowcount,
        cursor.statusmessage,
    )
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
        "LOCK TABLE t",
        "INSERT INTO t VALUES (20); COMMIT; INSERT INTO t VALUES (21); SELECT nothing",
        "INSERT INTO t VALUES (22); BEGIN; INSERT INTO t VALUES (23); ROLLBACK; INSERT INTO"
        " t VALUES (24)",
        "INSERT INTO t VALUES (25); SAVEPOINT a",
        "BEGIN; INSERT INTO t VALUES (7); SELECT nothing",
        "",
        "/* nothing */ ;",
    ):
        run(text)
    cursor.execute("ROLLBACK")
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
    connection.set_session(readonly=True, autocommit=True)
    for text in (
        "INSERT INTO t VALUES (1)",
        "BEGIN",
        "INSERT INTO t VALUES (1)",
        "ROLLBACK",
        "SELECT count(*) FROM t",
    ):
        with told.error():
            cursor.execute(text)
    other = connect()
    with other, other.cursor() as writing:
        writing.execute("INSERT INTO t VALUES (9)")
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
    reader, latin = connect(), connect(client_encoding="latin1")
    for _ in range(2):
        for each in (reader, latin, connect()):
            cursor = each.cursor()
            cursor.execute("SELECT b, 'ü' FROM t")
            told(each.encoding, rows(cursor))
            each.commit()
    cursor = latin.cursor()
    cursor.execute("SELECT b FROM t")
    told(
        latin.encoding, rows(cursor), latin.server_version, latin.protocol_version, latin.info.user
    )
    cursor = connect().cursor()
    cursor.execute("SELECT b, 'ß' FROM t")
    told(rows(cursor))


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
    for number, (close, commit) in enumerate(
        [(True, True), (True, False), (False, False), (False, True)]
    ):
        write(number, close, commit)
        gc.collect()
        cursor.execute("SELECT a FROM t ORDER BY a")
        told(rows(cursor))


def cursors(connect: Connect, told: Told) -> None:
    """Server-side cursors end with their transaction, unless they are declared to stay."""
    connection = connect()
    cursor = connection.cursor()
    for end in (connection.commit, connection.rollback):
        cursor.execute(
            "DECLARE a CURSOR FOR SELECT generate_series(1, 3); DECLARE stays CURSOR WITH"
            " HOLD FOR SELECT 1"
        )
        named = connection.cursor("named")
        named.execute("SELECT generate_series(1, 5)")
        told(named.fetchmany(2))
        end()
        with told.error():
            named.fetchmany(2)
        connection.rollback()
        with told.error():
            cursor.execute("CLOSE stays")
        connection.commit()
    connection.autocommit = True
    for _ in range(2):
        cursor.execute("DECLARE a CURSOR FOR SELECT generate_series(1, 3); FETCH 2 FROM a")
        told(rows(cursor))


TRANSACTIONS = [blocks, autocommit, sql_text, settings, forgotten, cursors]
