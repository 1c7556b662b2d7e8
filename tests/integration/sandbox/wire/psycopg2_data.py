"""More programs over psycopg2: cursors, types, copies and large objects."""

from __future__ import annotations

import decimal
import io
import uuid

import psycopg2.extensions as extensions
import psycopg2.extras as extras
import pytest
from psycopg2 import OperationalError

from .psycopg2_programs import Connect, Told, rows


def cursors(connect: Connect, told: Told) -> None:
    """Every kind of cursor, also on the server's side."""
    connection = connect()
    cursor = connection.cursor()
    extras.execute_values(
        cursor, "INSERT INTO t VALUES %s", [(n, str(n)) for n in range(50)], page_size=7
    )
    extras.execute_batch(
        cursor, "UPDATE t SET b = b || %s WHERE a = %s", [("!", n) for n in range(9)]
    )
    told(
        extras.execute_values(
            cursor, "INSERT INTO t VALUES %s RETURNING a", [(60,), (61,)], fetch=True
        )
    )
    told(cursor.mogrify("SELECT %s", (["it's", None],)))
    for kind in (extras.DictCursor, extras.RealDictCursor, extras.NamedTupleCursor, None):
        for name in (None, "named"):
            with connection.cursor(name, cursor_factory=kind) as found:
                found.execute("SELECT a, b AS other FROM t ORDER BY a LIMIT 3")
                told(found.fetchone(), found.fetchmany(1), found.rownumber, found.query)
                told(
                    [
                        dict(row) if kind is extras.RealDictCursor else tuple(row)
                        for row in found.fetchall()
                    ]
                )
                told(
                    found.description,
                    found.name,
                    isinstance(found, kind or extensions.cursor),
                    type(found).__name__,
                )
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
    for value in (
        None,
        True,
        1,
        1.5,
        decimal.Decimal("1.20"),
        "it's",
        b"\x00\xff",
        [1, 2],
        ["a", None],
        some,
        extras.Json({"a": 1}),
    ):
        cursor.execute("SELECT %s, %s::text", (value, value))
        told(
            [bytes(x) if isinstance(x, memoryview) else x for x in cursor.fetchone()],
            cursor.description[0].type_code,
        )
    cursor.execute(
        "SELECT '{\"a\": [1]}'::jsonb, '[1,5)'::int4range, now()::date > '2020-01-01',"
        " ROW(1, 'z')::pair, 'ok'::mood"
    )
    told(cursor.fetchone())
    cursor.execute("SELECT oid FROM pg_type WHERE typname = 'mood'")
    (oid,) = cursor.fetchone()
    extensions.register_type(
        extensions.new_type((oid,), "MOOD", lambda text, _: text and text.upper()), connection
    )
    cursor.execute("SELECT 'ok'::mood, ''::text, NULL::mood, repeat('x', 100000)")
    told(cursor.fetchone())
    cursor.execute("SELECT")
    told(cursor.rowcount, cursor.description, cursor.fetchall())
    extras.register_default_json(connection, loads=lambda text: ["own", text])
    cursor.execute("SELECT '1'::json; SELECT '2'::json")
    told(cursor.fetchall())
    cursor.execute(
        "DO $$ BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'again' USING HINT = 'h'; END $$"
    )
    told(connection.notices)
    with told.error():
        cursor.execute(
            "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'ZZ001', DETAIL = 'd', HINT ="
            " 'h', COLUMN = 'c'; END $$"
        )


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
    with pytest.raises(OperationalError, match="does not exist"):
        connection.lobject(oid, "rb")


DATA = [cursors, types, copies, large_objects]
