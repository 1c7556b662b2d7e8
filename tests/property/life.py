"""One clone's life in the property test: programs run in it one after another, and each finds it
equal to its template."""

from __future__ import annotations

import contextlib
import difflib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from peewee import PostgresqlDatabase

from dbclone.clone.clone import Clone
from dbclone.clone.isolation import Isolation
from dbclone.databases import ddl
from dbclone.errors import Error, ResetBlocked, SandboxLimit
from dbclone.schema.manifest import digest
from dbclone.schema.sources import Progress
from dbclone.server.connection import hang_up
from dbclone.server.server import Server
from dbclone.template.template import Template

from ..oracle import differences, fingerprint
from .dump import dump
from .programs import Program, Step
from .schemas import Schema

PATIENCE = "-c lock_timeout=30ms -c statement_timeout=10s"
Connection = psycopg.Connection[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """SQL text as what goes into a template."""

    text: str

    def manifest(self) -> Mapping[str, str]:
        return {"text": digest(self.text.encode())}

    def build(self, url: str, progress: Progress) -> None:
        progress("running the schema")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(self.text.encode())


@dataclass
class Life:
    """A clone, what it was like when it was made, and who is in it.

    Arguments: `above`, the server as a superuser sees it; `pg_dump`, or None.
    """

    clone: Clone
    above: Server
    pg_dump: Path | None = None
    truth: dict[str, str] = field(default_factory=dict)
    dumped: list[str] = field(default_factory=list)
    strangers: list[Connection] = field(default_factory=list)
    exact: bool = True  # whether the last reset promised the positions of sequences

    def __post_init__(self) -> None:
        self.truth = self._looked(fingerprint)
        self.dumped = self._looked(self._dump)

    def _looked(self, look: Callable[[str], T]) -> T:
        """Look at the clone as a superuser, whose session has gone when the clone's owner, who may
        not end it, has to be alone."""
        try:
            return look(self.above.database(self.clone.name).url)
        finally:
            there = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND usename = current_user"
            mine = self.clone.server is self.above
            deadline = time.monotonic() + 30
            while (
                not mine
                and self.above.fetch(there, [self.clone.name])[0][0]
                and time.monotonic() < deadline
            ):
                pass

    def _dump(self, url: str) -> list[str]:
        return dump(self.pg_dump, url) if self.pg_dump else []

    def live(self, program: Program) -> None:
        """Let one test run and be undone. Raises AssertionError if the test before it has left
        something."""
        old, left = self.strangers[:], ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # that a write has escaped from a sandbox
                with self.clone.isolated(
                    program.reset, "any writes", reset_sequences=program.sequences
                ) as isolation:
                    left = self.difference()
                    if not left:
                        self._run(program, isolation)
        except ResetBlocked:
            if not self.strangers:
                raise
        except (
            SandboxLimit
        ):  # raised when the connections are closed, if their transactions interleave
            if isolation.reset != "rollback":
                raise
        self._dismiss(old)
        self.exact = isolation.reset == "truncate" or program.sequences
        assert not left, left

    def difference(self) -> str:
        """Return what differs from the template, for people."""
        for patience in (bool(self.strangers), False):
            try:
                found = self._looked(fingerprint)
                break
            except psycopg.errors.LockNotAvailable:
                if not patience:
                    raise
                self._dismiss(self.strangers[:])  # a lock is not a difference
        truth = (
            self.truth
            if self.exact
            else {
                name: found.get(name, "") if name.startswith("sequence ") else text
                for name, text in self.truth.items()
            }
        )
        return differences(truth, found)

    def end(self) -> None:
        """Look once more, also by pg_dump. Raises AssertionError."""
        self._dismiss(self.strangers[:])
        with self.clone.isolated("truncate", "the last one"):
            left = self.difference()
        assert not left, left
        lines = list(
            difflib.unified_diff(
                self.dumped, self._looked(self._dump), "template", "clone", lineterm="", n=1
            )
        )
        assert not lines, "\n".join(lines[:60])

    def _run(self, program: Program, isolation: Isolation) -> None:
        """Run a program as a careless application would: what fails has failed, and blocks stay
        open."""
        opened: dict[int, Connection] = {}
        for step in program.steps:
            connection = opened.get(step.connection)
            if connection is None:
                if step.connection == 2 and program.leak:
                    connection = psycopg.connect(self.clone.url, autocommit=True, options=PATIENCE)
                    self.strangers.append(connection)
                else:
                    connection = isolation.connect(autocommit=True, options=PATIENCE)
                    _perform(
                        connection, Step(0, "SET lock_timeout = '30ms'"), True
                    )  # in a sandbox there are no options
                opened[step.connection] = connection
            real = isolation.reset != "rollback" or connection in self.strangers
            _perform(connection, step, real)
            if step.statement in ("DISCARD ALL", "RESET ALL"):
                _perform(connection, Step(0, "SET lock_timeout = '30ms'"), True)

    def _dismiss(self, chosen: list[Connection]) -> None:
        for stranger in chosen:
            self.strangers.remove(stranger)
            hang_up(stranger.pgconn)  # or the server would go on with what it has been sent


def _perform(connection: Connection, step: Step, real: bool) -> None:
    with contextlib.suppress(psycopg.Error, Error):
        if step.data is None:
            connection.execute(step.statement.encode())
        elif step.left and real:
            connection.pgconn.exec_(step.statement.encode())
            connection.pgconn.put_copy_data(step.data.encode())
        else:
            with connection.cursor().copy(step.statement.encode()) as copy:
                copy.write(step.data)


@contextlib.contextmanager
def life(server: Server, schema: Schema, above: Server, pg_dump: Path | None) -> Iterator[Life]:
    """Make a template of a schema, a clone, and at the end drop both.

    Arguments: `server`, as the client that is tested; `above`, as a superuser sees it.
    """
    own = replace(server.settings, name="anywrites", lock_timeout=0.3)
    server.settings, before = own, server.settings
    handle = PostgresqlDatabase(None, prefer_psycopg3=True)
    lived: Life | None = None
    try:
        template = Template.ensure(server, Text(schema.text), handle)
        try:
            with template.clone("main") as clone:
                lived = Life(clone, above, pg_dump)
                yield lived
        finally:
            if lived is not None:
                lived._dismiss(lived.strangers[:])
            server.leases.release(template.name, shared=True)
            ddl.drop(server, template.database)
    finally:
        server.settings = before
