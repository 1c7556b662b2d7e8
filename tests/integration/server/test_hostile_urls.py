"""URLs of every style, well formed or not, and passwords of every letter: understood as libpq
would, or refused and not shown."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy
from hypothesis import example, given
from hypothesis import strategies as st
from playhouse import db_url
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from dbclone.errors import SettingsError
from dbclone.server.connection import connect
from dbclone.server.dsn import Dsn, parse
from dbclone.server.server import Server
from dbclone.settings import load

from ..hostile import ANYTHING, FRAGMENTS, examples

CORE = "s3cr3t"
# Control characters are in no password that a URL of ours can hold: `parse` refuses them, because a
# line end may be an injection.
PASSWORDS = st.lists(
    st.sampled_from([f for f in FRAGMENTS if all(ord(c) >= 32 for c in f)]), max_size=5
).map(lambda parts: CORE + "".join(parts))
STYLES = {
    "libpq's URI": lambda password: f"postgresql://u:{quote(password, safe='')}@h:5433/d?sslmode=disable",
    "the short scheme": lambda password: f"postgres://u:{quote(password, safe='')}@h:5433/d?sslmode=disable",
    "libpq's URI with it among the parameters": lambda password: (
        f"postgresql://u@h:5433/d?password={quote(password, safe='')}&sslmode=disable"
    ),
    "key and value": lambda password: make_conninfo(
        "", host="h", port=5433, user="u", password=password, dbname="d", sslmode="disable"
    ),
    "SQLAlchemy's": lambda password: sqlalchemy.URL.create(
        "postgresql+psycopg", "u", password, "h", 5433, "d", {"sslmode": "disable"}
    ).render_as_string(hide_password=False),
    "SQLAlchemy's for psycopg2": lambda password: sqlalchemy.URL.create(
        "postgresql+psycopg2", "u", password, "h", 5433, "d", {"sslmode": "disable"}
    ).render_as_string(hide_password=False),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@examples(60)
@given(password=PASSWORDS)
@example(password=string.printable[:95])
def test_every_style_of_url_gives_the_same_target_whatever_the_password(
    style: str, password: str
) -> None:
    """S6, S23: and what we render of it, for another database too, is the same but for the
    database."""
    dsn = parse(STYLES[style](password))
    expected = {
        "host": "h",
        "port": "5433",
        "user": "u",
        "password": password,
        "dbname": "d",
        "sslmode": "disable",
    }
    assert dict(dsn.params) == expected
    for dbname in ("d", "other", "a=b' c"):
        assert conninfo_to_dict(dsn.replace(dbname=dbname).url) == {**expected, "dbname": dbname}
    assert CORE not in f"{dsn} {dsn!r} {dsn.url!r}"


@examples(60)
@given(password=PASSWORDS)
def test_a_url_for_peewee_means_the_same_to_us(password: str) -> None:
    """S23: its own parser leaves the letters encoded unless it is told, and dbclone hands it what
    libpq would read."""
    url = f"postgresql://u:{quote(password, safe='')}@h:5433/d"
    theirs = db_url.parse(url, unquote_password=True)
    dsn = parse(url)
    assert (theirs["user"], theirs["password"], theirs["host"]) == (
        dsn.get("user"),
        dsn.get("password"),
        dsn.get("host"),
    )
    assert (theirs["database"], theirs["port"]) == (dsn.get("dbname"), int(dsn.get("port")))


SCHEMES = [
    "postgresql",
    "postgres",
    "PostgreSQL",
    "postgresql+psycopg",
    "postgresql+pool",
    "postgresqlext",
    "psycopg3",
    "mysql",
    "http",
    "",
    "-",
]
PIECES = [
    "://",
    ":",
    "@",
    "/",
    "?",
    "&",
    "=",
    "%",
    "%zz",
    "%00",
    "%2F",
    "[",
    "]",
    "::1",
    ",",
    " ",
    "'",
    "\\",
    "h",
    "u",
    "d",
    "5432",
    "99999",
]
KEYS = [
    "host=",
    "port=",
    "user=",
    "password=",
    "dbname=",
    "sslmode=",
    "service=",
    "options=",
    "nonsense=",
    "hostaddr=",
    "passfile=",
]
JUMBLES = st.tuples(
    st.sampled_from(SCHEMES),
    st.lists(st.sampled_from([*PIECES, *KEYS, *FRAGMENTS, CORE, CORE]), max_size=14).map("".join),
).map("".join)


def attempt(text: str) -> tuple[Dsn, SettingsError | None]:
    try:
        return parse(text, "url (from the test)"), None
    except SettingsError as error:
        return Dsn(()), error


@examples(400)
@given(text=JUMBLES | ANYTHING | JUMBLES.map(lambda text: f"postgresql://u:{CORE}{text}"))
@example(text="postgresql://u:s3cr3t@h@x/d")
@example(text="postgresql://u@h/d?dbname=postgresql://x:s3cr3t@y/z")
@example(text="postgresql:///?host=s3cr3t,/x&port=1,2")
@example(text="dbname='host=elsewhere password=s3cr3t'")
def test_any_text_is_a_url_or_is_refused_without_being_shown(text: str) -> None:
    """S6, S7: what is accepted survives being rendered; what is refused is in no error, printed,
    represented or chained."""
    dsn, error = attempt(text)
    if error is not None:
        assert "url (from the test)" in error.message
        assert error.__cause__ is None
        assert error.__context__ is None
        assert CORE not in f"{error} {error!r}"
        trace = error.__traceback__
        while trace is not None:  # but for the caller's own
            assert trace.tb_frame.f_code.co_filename == __file__ or CORE not in repr(
                trace.tb_frame.f_locals
            )
            trace = trace.tb_next
        return
    assert dict(parse(dsn.url).params) == dict(dsn.params)
    assert dict(parse(dsn.replace(dbname="x").url).params) == {**dict(dsn.params), "dbname": "x"}
    password = dsn.get("password")
    if CORE in password and not any(
        CORE in value for key, value in dsn.params if "password" not in key
    ):
        assert CORE not in f"{dsn} {dsn!r} {dsn.url!r} {dsn.mask(dsn.url)}"


@pytest.fixture(scope="module")
def guarded(server: Server) -> Iterator[tuple[Server, str]]:
    """A role that has a password: a TCP port or a rule for it is not needed to see what the server
    is sent, SCRAM proves it."""
    server.connection.execute("CREATE ROLE guarded LOGIN CREATEDB")
    assert server.embedded is not None
    rules = server.embedded.cluster.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all guarded scram-sha-256\n" + before)
    server.connection.execute("SELECT pg_reload_conf()")
    with contextlib.ExitStack() as stack:
        stack.callback(server.connection.execute, "DROP ROLE guarded")
        stack.callback(server.connection.execute, "SELECT pg_reload_conf()")
        stack.callback(rules.write_text, before)
        yield server, server.dsn.get("host")


SPECIAL = [
    string.punctuation,
    *string.punctuation,
    "a b",
    " ",
    "é😀",
    "ß",
    "İ漢字",
    "%41",
    "a%20b",
    "''",
    "\\'",
    "x" * 900,
    "{}",
    "%s%(a)s",
]


@pytest.mark.parametrize("password", SPECIAL, ids=ascii)
def test_a_password_of_any_letters_lets_us_in_and_another_does_not(
    password: str, guarded: tuple[Server, str], tmp_path: Path
) -> None:
    """S6, S7: sent as it is, from a URL and from key and value; the error about a wrong one shows
    neither."""
    server, host = guarded
    server.connection.execute(
        sql.SQL("ALTER ROLE guarded PASSWORD {}").format(sql.Literal(password))
    )
    where = {"host": host, "port": "5432", "user": "guarded", "dbname": "postgres"}
    dsn = Dsn(tuple({**where, "password": password}.items()))
    for text in (dsn.url, make_conninfo("", **where, password=password)):
        with Server.open(load(tmp_path, {"url": str(text)}, {})) as opened:
            assert opened.facts.role == "guarded"
    with pytest.raises(Exception, match="the server refused us") as caught:
        Server.open(load(tmp_path, {"url": str(dsn.replace(password=f"{password}{CORE}").url)}, {}))
    assert CORE not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_connection_that_fails_has_the_password_in_no_frame(how: str) -> None:
    """S7, S8: psycopg's own frames have it in their variables, which pytest prints with
    --showlocals."""
    import asyncio

    from dbclone.server.connection import connect_async

    dsn = Dsn((("host", "/nonexistent"), ("user", "u"), ("password", CORE), ("dbname", "x")))
    with pytest.raises(psycopg.OperationalError) as caught:
        connect(dsn) if how == "sync" else asyncio.run(connect_async(dsn))
    shown = str(
        caught.getrepr(
            style="long", showlocals=True, funcargs=True, truncate_locals=False, chain=True
        )
    )
    assert "connection.py" in shown
    assert CORE not in shown.replace("CORE", "")
