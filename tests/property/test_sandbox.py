"""The sandbox against production: one random program on a plain connection and on a sandboxed one,
compared step by step.

What is compared after each step: rows, row count, command tag or the error's class and SQLSTATE,
and the transaction status that the connection reports; and at the end what was committed. A program
stops where the sandbox says SandboxLimit: that is loud, never wrong.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.errors import SandboxLimit
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template

pytestmark = pytest.mark.slow

Connect = Callable[..., "psycopg.Connection[Any]"]
Step = tuple[Any, ...]
EXAMPLES = max(1, round(60 * float(os.environ.get("TEST_EXAMPLES", "1"))))
SCHEMA = """
CREATE TABLE item (id int PRIMARY KEY, note text);
CREATE TABLE part (item int REFERENCES item DEFERRABLE INITIALLY DEFERRED);
INSERT INTO item VALUES (100, 'seeded');
"""
ROWS = "SELECT id, note FROM item UNION ALL SELECT item, 'part' FROM part ORDER BY 1, 2"


def create(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(SCHEMA)


class Planned(Exception):
    """What a block of a program raises on purpose."""


@dataclass
class Runner:
    """Runs the steps of a program on connections from `connect`, and notes what each did."""

    connect: Connect
    connections: list[psycopg.Connection[Any]] = field(default_factory=list)
    blocks: list[list[contextlib.AbstractContextManager[Any]]] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def run(self, program: list[Step], count: int) -> None:
        self.connections = [self.connect() for _ in range(count)]
        self.blocks = [[] for _ in range(count)]
        for who, *step in program:
            at = who % count
            try:
                result: Any = self.step(at, *step)
            except SandboxLimit:
                self.seen.append("limit")
                return
            except (psycopg.Error, Planned, TypeError, ValueError) as error:
                result = (type(error).__name__, getattr(error, "sqlstate", None))
                if (
                    result[1] == "42601"
                ):  # a block that failed for the sake of others refuses even what is no SQL
                    result = ("InFailedSqlTransaction", "25P02")
                if (
                    step[0] == "pipeline"
                ):  # psycopg takes some statements for prepared that never were, now and then
                    result = "an error"
            self.seen.append((step, result, [self.status(c) for c in self.connections]))

    @staticmethod
    def status(connection: psycopg.Connection[Any]) -> str:
        return TransactionStatus(connection.info.transaction_status).name

    def step(self, at: int, verb: str, *arguments: Any) -> Any:
        connection = self.connections[at]
        return getattr(self, f"do_{verb}")(at, connection, *arguments)

    def do_sql(self, at: int, connection: psycopg.Connection[Any], text: str, how: str = "") -> Any:
        cursor = connection.cursor()
        text = text.replace(
            "%s", f"c{at}_{len(self.seen)}"
        )  # names of cursors and the like are the session's, which connections share
        cursor.execute(text.encode(), prepare=True if how == "prepare" else None)
        found = []
        while True:
            found.append(
                (
                    cursor.statusmessage,
                    cursor.rowcount,
                    cursor.fetchall() if cursor.description else None,
                )
            )
            if not cursor.nextset():
                return found

    def do_commit(self, at: int, connection: psycopg.Connection[Any]) -> None:
        connection.commit()

    def do_rollback(self, at: int, connection: psycopg.Connection[Any]) -> None:
        connection.rollback()

    def do_autocommit(self, at: int, connection: psycopg.Connection[Any], value: bool) -> None:
        connection.autocommit = value

    def do_read_only(self, at: int, connection: psycopg.Connection[Any], value: bool) -> None:
        connection.read_only = value

    def do_enter(
        self, at: int, connection: psycopg.Connection[Any], name: str | None, force: bool
    ) -> None:
        block = connection.transaction(name, force_rollback=force)
        block.__enter__()
        self.blocks[at].append(block)

    def do_exit(self, at: int, connection: psycopg.Connection[Any], how: str) -> Any:
        if not self.blocks[at]:
            return None
        block = self.blocks[at].pop()
        error = {"ok": None, "error": Planned(), "rollback": psycopg.Rollback()}[how]
        return block.__exit__(type(error) if error else None, error, None)

    def do_close(self, at: int, connection: psycopg.Connection[Any]) -> None:
        connection.close()

    def do_reopen(self, at: int, connection: psycopg.Connection[Any], autocommit: bool) -> None:
        connection.close()
        self.blocks[at].clear()
        self.connections[at] = self.connect(autocommit=autocommit)

    def do_many(self, at: int, connection: psycopg.Connection[Any], numbers: list[int]) -> int:
        cursor = connection.cursor()
        cursor.executemany("INSERT INTO item VALUES (%s, 'many')", [(n,) for n in numbers])
        return cursor.rowcount

    def do_copy(self, at: int, connection: psycopg.Connection[Any], numbers: list[int]) -> int:
        cursor = connection.cursor()
        with cursor.copy("COPY item FROM STDIN") as copy:
            for n in numbers:
                copy.write_row((n, "copied"))
        return cursor.rowcount

    def do_stream(self, at: int, connection: psycopg.Connection[Any]) -> list[Any]:
        return list(connection.cursor().stream("SELECT id FROM item ORDER BY id"))

    def do_server(self, at: int, connection: psycopg.Connection[Any], hold: bool) -> list[Any]:
        with connection.cursor("named", withhold=hold) as cursor:
            cursor.execute("SELECT id FROM item ORDER BY id")
            return cursor.fetchmany(2) + cursor.fetchall()

    def do_client(self, at: int, connection: psycopg.Connection[Any], number: int) -> Any:
        cursor = psycopg.ClientCursor(connection)
        return cursor.execute(
            "INSERT INTO item VALUES (%s, %s); SELECT count(*) FROM item", (number, "it's")
        ).rowcount

    def do_pipeline(self, at: int, connection: psycopg.Connection[Any], numbers: list[int]) -> Any:
        with connection.pipeline():
            cursors = [
                connection.execute("INSERT INTO item VALUES (%s, 'piped')", (n,)) for n in numbers
            ]
        return [c.rowcount for c in cursors]

    def finish(self) -> None:
        for connection in self.connections:
            connection.close()


NUMBERS = st.lists(st.integers(0, 6), min_size=1, max_size=3)
CONTROL = [
    "BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "END", "ABORT", "BEGIN READ ONLY",
    "SAVEPOINT a", "SAVEPOINT b", "RELEASE a", "ROLLBACK TO a", "ROLLBACK TO SAVEPOINT b", "RELEASE SAVEPOINT nowhere",
    "BEGIN ISOLATION LEVEL SERIALIZABLE", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
]  # fmt: skip
PLAIN = [
    ROWS, "SELECT 1", "SELECT 1/0", "nonsense", "DELETE FROM item WHERE id < 100", "UPDATE item SET note = note || '!'", "",
    "INSERT INTO part VALUES (1)", "INSERT INTO part VALUES (100)", "SET CONSTRAINTS ALL IMMEDIATE", "DELETE FROM part",
    "LOCK TABLE item", "INSERT INTO item VALUES (100, 'twice')", "DECLARE %s CURSOR FOR SELECT 1",
]  # fmt: skip
INSERTS = [
    psycopg.sql.SQL("INSERT INTO item VALUES ({}, 'x')").format(n).as_string(None) for n in range(7)
]
ORDINARY = st.sampled_from([*PLAIN, *INSERTS, *INSERTS])
TEXT = st.one_of(
    ORDINARY,
    st.sampled_from(CONTROL),
    # The server reads a whole string before it runs any of it, and so do we not: without what is no
    # SQL at all.
    st.lists(
        st.one_of(ORDINARY, st.sampled_from(CONTROL)).filter(lambda text: text != "nonsense"),
        min_size=2,
        max_size=4,
    ).map("; ".join),
)
STEP = st.one_of(
    st.tuples(st.just("sql"), TEXT),
    st.tuples(st.just("sql"), TEXT),
    st.tuples(st.just("sql"), ORDINARY, st.just("prepare")),
    st.tuples(st.sampled_from(["commit", "rollback", "stream"])),
    st.tuples(st.sampled_from(["autocommit", "read_only", "server", "reopen"]), st.booleans()),
    st.tuples(st.just("enter"), st.sampled_from([None, None, "named"]), st.booleans()),
    st.tuples(st.just("exit"), st.sampled_from(["ok", "ok", "error", "rollback"])),
    st.tuples(st.sampled_from(["many", "copy", "pipeline"]), NUMBERS),
    st.tuples(st.just("client"), st.integers(0, 6)),
    st.tuples(st.just("close")),
)


class Both:
    """A plain clone's URL, and a clone to be isolated in."""

    def __init__(self, plain: str, sandbox: Clone) -> None:
        self.plain = plain
        self.sandbox = sandbox

    def __repr__(self) -> str:
        return "both"


@pytest.fixture(scope="module")
def template(server: Server, settings: Settings) -> Template:
    mine = replace(settings, name="differential")
    parts, _ = handles.load(mine, create)
    return Template.ensure(server, parts)


@pytest.fixture(scope="module")
def both(template: Template) -> Iterator[Both]:
    """The worlds to compare."""
    with template.clone(owner="plain") as plain, template.clone(owner="sandbox") as sandbox:
        yield Both(plain.url, sandbox)


def outcome(
    program: list[Step], count: int, plain: str, sandbox: Clone
) -> tuple[list[Any], list[Any]]:
    """Run a program both ways; return what was seen in each."""
    # Both connections are in one thread: who waits for the other would wait for ever.
    production = Runner(
        lambda **options: psycopg.connect(plain, options="-c lock_timeout=100", **options)
    )
    production.run(program, count)
    production.finish()
    with psycopg.connect(plain, autocommit=True) as reader:
        production.seen.append(reader.execute(ROWS).fetchall())
        reader.execute("TRUNCATE item, part; INSERT INTO item VALUES (100, 'seeded')")
    with sandbox.isolated("rollback") as isolation:
        imitation = Runner(isolation.connect)
        imitation.run(program, count)
        if "limit" not in imitation.seen:
            with contextlib.suppress(SandboxLimit):
                imitation.finish()
            with isolation.connect(autocommit=True) as reader:
                imitation.seen.append(reader.execute(ROWS).fetchall())
    assert sandbox.state.sandbox().real.info.transaction_status == TransactionStatus.IDLE, (
        "the outer transaction was not ended"
    )
    with sandbox.connect(autocommit=True) as reader:
        left = reader.execute(ROWS).fetchall()
        if left != [(100, "seeded")]:  # for the next program to begin where it should
            reader.execute("TRUNCATE item, part; INSERT INTO item VALUES (100, 'seeded')")
    assert left == [(100, "seeded")], "something was committed for real"
    return production.seen, imitation.seen


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # programs leave cursors open, in either world
@given(
    program=st.lists(st.tuples(st.integers(0, 1), STEP).map(lambda t: (t[0], *t[1])), max_size=14),
    count=st.integers(1, 2),
)
@settings_of_hypothesis(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_a_program_sees_the_same(both: Both, program: list[Step], count: int) -> None:
    production, imitation = outcome(program, count, both.plain, both.sandbox)
    for number, (real, seen) in enumerate(zip(production, imitation, strict=False)):
        if seen == "limit" or "55P03" in str(
            real
        ):  # in production one would wait for the other, which is the same thread
            return
        assert seen == real, f"step {number} of {program}"
    assert len(production) == len(imitation)
