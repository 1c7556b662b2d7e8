"""psycopg2 in a sandbox: the same code gives the same results, rows and errors there and for real."""

from __future__ import annotations

import gc
import io
import pickle
import posix
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions

from dbclone.errors import SandboxLimit
from dbclone.reset.rollback import Level
from dbclone.sandbox.session import Session
from dbclone.sandbox.wire.psycopg2 import Connector
from dbclone.sandbox.wire.server import Conversation
from dbclone.server.server import Server

from .psycopg2_data import DATA
from .psycopg2_programs import (
    TRANSACTIONS,
    Connect,
    Told,
    count,
    database,
    insert,
    rows,
)


@pytest.mark.parametrize(
    "program", [*TRANSACTIONS, *DATA], ids=lambda program: str(program.__name__)
)
def test_a_program_sees_the_same_sandboxed_and_for_real(
    program: Callable[[Connect, Told], None], connect: Connect, server: Server
) -> None:
    """On a fresh database, in autocommit mode or not; texts and positions of errors included."""
    fresh = database(server)
    opened: list[Any] = []

    def really(**options: Any) -> Any:
        made = psycopg2.connect(fresh, **options)
        if program.__name__ != "forgotten":
            opened.append(made)
        return made

    real, sandboxed = Told(), Told()
    program(really, real)
    for connection in opened:
        connection.close()
    program(connect, sandboxed)
    assert len(real.seen) > 3
    for there, here in zip(real.seen, sandboxed.seen, strict=True):
        assert here == there


def test_psycopg_and_psycopg2_see_the_same_state(connect: Connect, session: Session) -> None:
    connection = connect()
    insert(connection, 1)
    connection.commit()
    assert count(session) == 1
    insert(connection, 2)
    connection.rollback()
    assert count(session) == 1
    with session.connect(autocommit=True) as other:
        other.execute("INSERT INTO t VALUES (3)")
    cursor = connection.cursor()
    cursor.execute("SELECT a FROM t ORDER BY a")
    assert rows(cursor) == [(1,), (3,)]


def test_a_limit_of_the_sandbox_is_no_error_of_psycopg2(connect: Connect) -> None:
    """What it says arrives in its three parts; an application's own error handling must not swallow
    it."""
    connection = connect()
    connection.tpc_begin(connection.xid(1, "a", "b"))
    insert(connection, 1)
    with pytest.raises(SandboxLimit, match="two-phase commit") as raised:
        connection.tpc_prepare()
    assert not isinstance(raised.value, psycopg2.Error)
    assert raised.value.message == "two-phase commit inside a rollback"
    assert raised.value.detail.startswith("The statement is: PREPARE TRANSACTION")
    assert 'reset="truncate"' in raised.value.hint
    assert type(pickle.loads(pickle.dumps(raised.value))) is SandboxLimit
    connection.close()
    connection = connect()
    with connection.cursor() as cursor, pytest.raises(SandboxLimit, match="reserved"):
        cursor.execute("SAVEPOINT dbclone_mine")


def test_transactions_that_meet_are_refused_at_once_in_one_thread(
    connect: Connect, session: Session
) -> None:
    """Whoever could only wait for itself does not wait, whichever driver it uses."""
    session.session_lock.timeout = 600.0
    first, second = connect(), connect()
    insert(first, 1)
    with pytest.raises(SandboxLimit, match="two connections of the application meet"):
        insert(second, 2)
    with pytest.raises(SandboxLimit, match="two connections of the application meet"):
        count(session)
    second.rollback()
    first.commit()
    assert count(session) == 1


def test_a_copy_whose_data_come_from_the_sandbox_is_an_error_and_no_deadlock(
    connect: Connect, session: Session
) -> None:
    """For real it would work; here one session would have to do two things at once. psycopg2 makes
    the error the server's own."""
    session.session_lock.timeout = 600.0
    connection, other = connect(), connect()
    other.autocommit = True

    class Asking:
        def __init__(self, ask: Callable[[], Any]) -> None:
            self.ask = ask

        def read(self, size: int) -> str:
            self.ask()
            return ""

    cursor = connection.cursor()
    for ask in (lambda: other.cursor().execute("SELECT 1"), lambda: count(session)):
        with pytest.raises(
            psycopg2.Error, match="waits for this thread itself"
        ):  # psycopg2 lets the server end the COPY with the error's text
            cursor.copy_from(Asking(ask), "t")
        connection.rollback()
    assert count(session) == 0


def test_a_copy_much_larger_than_any_buffer_ends(connect: Connect, session: Session) -> None:
    connection = connect()
    with connection.cursor() as cursor:
        for size in (1 << 10, 8192, 1 << 24):
            cursor.copy_from(
                io.StringIO("".join(f"{n}\t{'ü' * 500}\n" for n in range(3000))), "t", size=size
            )
            assert cursor.rowcount == 3000
            connection.rollback()


def test_a_connection_kept_for_later_fails_rather_than_writing_for_real(
    session: Session, url: str
) -> None:
    with Connector(session) as gate:
        kept = gate.connect(url)
        insert(kept, 1)
        kept.rollback()
        assert not Path(kept.info.host).exists()  # nobody else can come in
    with pytest.raises(psycopg2.OperationalError, match="closed"):
        insert(kept, 2)


def test_what_is_given_up_is_rolled_back_at_once(
    connect: Connect, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D9: closed, not referred to any more, or found by the garbage collector in a cycle; the
    thread that serves it may be late."""
    late = threading.Event()
    message = Conversation._message

    def slow(conversation: Conversation) -> tuple[bytes, bytes]:
        try:
            kind, body = message(conversation)
            if kind != b"X":
                return kind, body
        except EOFError:
            pass
        late.wait(60)
        raise EOFError

    monkeypatch.setattr(Conversation, "_message", slow)
    left = {}
    try:
        for way in ("closed", "dropped", "in a cycle"):
            connection = connect()
            insert(connection, 1)
            if way == "closed":
                connection.close()
                left[way] = count(session)
            elif way == "in a cycle":
                connection.notices = [connection]
            del connection
            gc.collect()
            left[way] = left.get(way, count(session))
    finally:
        late.set()
    assert left == {"closed": 0, "dropped": 0, "in a cycle": 0}


def test_a_block_left_open_when_a_test_ended_is_another_one_in_the_next(
    connect: Connect, session: Session
) -> None:
    """psycopg2 goes on believing that it is in a transaction, and so says no BEGIN."""
    connection = connect()
    for _ in range(2):
        level = Level(session)
        level.enter()
        insert(connection, 1)
        level.leave()
        assert count(session) == 0
    insert(connection, 1)
    connection.rollback()
    assert count(session) == 0
    insert(connection, 1)
    connection.commit()
    assert count(session) == 1


def test_a_connection_that_cannot_be_made_leaves_nothing_behind(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does one that can; the folder for temporary files may have a name too long for a socket."""
    made: list[str] = []
    make = posix.mkdir

    def noted(path: str, mode: int) -> None:
        made.append(path)
        make(path, mode)

    class Failing(extensions.connection):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, nonsense=1)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(posix, "mkdir", noted)
    with pytest.raises(TypeError):
        connect(connection_factory=Failing)
    with pytest.raises(psycopg2.OperationalError, match="nonsense"):
        connect(client_encoding="nonsense")
    insert(connect(), 1)
    assert len(made) == 3
    assert not [folder for folder in made if Path(folder).exists()]
