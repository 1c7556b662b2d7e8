"""A clone: one worker's own copy of a template, under a lease, and the isolation of each test in it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from . import adapters, databases
from .copying import claim_warm, copy
from .dsn import Dsn
from .errors import NotOurs, SandboxLimit, TemplateError
from .isolation import Isolation
from .marks import Database, Mark, clone_name, lock_key
from .report import Report
from .reset import Outcome, pick
from .reset.facts import Facts, Sequences
from .reset.rollback import Rollback
from .reset.sandbox import Session
from .reset.truncate import Truncate
from .server import Server

log = logging.getLogger("dbclone")
Connection = psycopg.Connection[Any]


def application_name(worker: str, test: str) -> str:
    """Return the name that sessions opened for a test carry, 63 bytes at most: the end of a test's id says more than its start."""
    text = f"dbclone {worker} {test}".encode("ascii", "replace").decode()
    return (
        text
        if len(text) <= 63
        else f"dbclone {worker} …{text[-(62 - len(worker) - 11) :]}".encode("ascii", "replace").decode()[:63]
    )


@dataclass
class Clone:
    """A database copied from a template, owned by one worker of one run for as long as its lease is held.

    Attributes: `name`; `dsn`; `owner`, the worker; `handle`, the application's database handle or None; `report`, what its resets
    cost. Use `Template.clone`, or `attach` in code that has only names.
    """

    server: Server
    name: str
    template: Database
    mark: Mark
    handle: Any = None
    report: Report = field(default_factory=Report)
    _session: Session | None = field(default=None, repr=False)
    _control: Connection | None = field(default=None, repr=False)
    _truncate: Truncate | None = field(default=None, repr=False)
    _sequences: Sequences | None = field(default=None, repr=False)
    _moved: bool = False
    _lending: contextlib.ExitStack | None = field(default=None, repr=False)
    _binding: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    @classmethod
    def create(cls, server: Server, template: Database, run: str, owner: str, handle: Any = None) -> Clone:
        """Copy `template` for one owner, taking the lease first.

        A warm clone that `prepare --workers` left is renamed instead, if there is one. Raises TemplateError, and
        psycopg.errors.InvalidCatalogName if the template has been dropped in the meantime.
        """
        settings = server.settings
        fingerprint = template.mark.fingerprint if template.mark is not None else ""
        mark = Mark.make("clone", settings.project, server.facts.system, run=run, worker=owner, fingerprint=fingerprint)
        clone = cls(server, clone_name(settings.project, run, owner), template, mark, handle)
        # A session gets a lock that it holds already, so another clone of this very process has to be looked for.
        if lock_key(clone.name) in server.leases.held() or not server.leases.take(clone.name):
            raise TemplateError(
                f'database "{clone.name}" is in use by another process',
                f"Its lease is held by {server.leases.holder(clone.name)}: two workers of one run have the same name.",
                "Give each worker a name of its own.",
            )
        try:
            clone._make()
        except BaseException:
            server.leases.give_up(clone.name)
            raise
        return clone

    @property
    def dsn(self) -> Dsn:
        return self.server.database(self.name)

    @property
    def url(self) -> str:
        """The clone's URL, for drivers; it contains the password if there is one."""
        return self.dsn.url

    @property
    def owner(self) -> str:
        return self.mark.worker

    def _make(self) -> None:
        started = time.perf_counter()
        leftover = databases.find(self.server, self.name)
        if leftover is not None:  # ours by its lease: a worker of this run died in the middle of its CREATE DATABASE
            databases.drop(self.server, leftover, force=True)
        warm = claim_warm(self.server, self.template, self.name, self.mark)
        if not warm:
            copy(self.server, self.template.name, self.name, self.mark)
        self.report.clone(time.perf_counter() - started)
        log.info("%s clone %s of %s", "claimed warm" if warm else "created", self.name, self.template.name)

    def connect(self, test: str = "", **options: Any) -> Connection:
        """Return a new real psycopg connection to the clone, named after the worker and the test in the server's session list."""
        arguments = {**self.dsn.kwargs, "application_name": application_name(self.owner, test), **options}
        return psycopg.connect(**arguments)

    @contextlib.contextmanager
    def isolated(self, reset: str = "auto", test: str = "", reset_sequences: bool | None = None) -> Iterator[Isolation]:
        """Run the block with the clone equal to its template at the start, and undo whatever the block wrote at its end.

        Arguments: `reset`, "auto", "rollback", "truncate" or "none"; `test`, what runs in the block, for sessions and reports;
        `reset_sequences`, put sequences back under rollback too (default: the setting). Raises SandboxLimit, ResetBlocked.
        """
        wanted = self.choose(reset)
        sequences = self.server.settings.reset_sequences if reset_sequences is None else reset_sequences
        if wanted == "rollback":
            with self._layer(test, sequences) as session:
                isolation = self._view(wanted, test, session)
                try:
                    yield isolation
                finally:
                    isolation.close()
            return
        if self._lending is not None:
            raise SandboxLimit(
                f"a test wants reset={wanted!r} inside a class or module that is isolated by rollback",
                f"{test or 'It'} would not see the data of dbclone_class or dbclone_module, which are in a transaction.",
                "Use rollback for this test, or make the data in the test.",
            )
        undo = self._truncating() if wanted == "truncate" else None
        if undo is not None and self._moved:
            undo.restore_sequences()  # earlier rollbacks left them where they were
            self._moved = False
        isolation = self._view(wanted, test, None)
        try:
            yield isolation
        finally:
            isolation.close()
            if undo is not None:
                self._settle(undo.after(), test)

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[Isolation]:
        """Keep what the block writes for as long as it lasts, as an outer layer of the tests inside it, and undo it at the end.

        Arguments: `name`, of the class or module, for reports. Raises SandboxLimit if the handle cannot be sandboxed.
        """
        with self._layer(name) as session:
            isolation = self._view("rollback", name, session)
            try:
                yield isolation
            finally:
                isolation.close()

    def _view(self, reset: str, test: str, session: Session | None) -> Isolation:
        return Isolation(self.name, self.url, reset, test, self.handle, lambda **options: self.connect(test, **options), session)

    def choose(self, reset: str) -> str:
        """Return the reset that will be used for `reset`.

        Under auto it is truncate where there is no handle to lend a sandbox to: then the application has connections of its own,
        which commit for real.
        """
        if reset == "auto" and (self.handle is None or adapters.refusal(self.handle)):
            return "truncate"
        return pick(reset)

    @contextlib.contextmanager
    def _layer(self, test: str, sequences: bool = False) -> Iterator[Session]:
        """Hold one more level of the sandbox for the block; the outermost lends it to the application's handle."""
        session = self._sandbox()
        outermost = self._lending is None
        with contextlib.ExitStack() as stack:
            positions = self._sequences if sequences and outermost else None
            level = Rollback(session, positions)
            if outermost:
                stack.callback(session.disconnect)
                stack.enter_context(adapters.lent(self.handle, session))
            level.before()
            if outermost:
                self._lending = stack
            try:
                yield session
            finally:
                if outermost:
                    self._lending = None
                outcome = level.after()
                stack.close()
                self._moved = self._moved or positions is None
                self._settle(outcome, test)

    def _sandbox(self) -> Session:
        if self._session is None or self._session.real.closed:
            self._session = Session(self._learning(self.connect(autocommit=True)))
        return self._session

    def _truncating(self) -> Truncate:
        if self._truncate is None or self._control is None or self._control.closed:
            self._control = self._learning(self.server.connect(self.name, f"control {self.owner}"))
            facts = Facts.ask(self._control, self._sequences)
            self._truncate = Truncate(self._control, self.server.settings.lock_timeout, self.name, facts)
        return self._truncate

    def _learning(self, connection: Connection) -> Connection:
        """Ask where sequences stand over the first connection, before a test has moved one: once a clone."""
        if self._sequences is None:
            self._sequences = Sequences.ask(connection)
        return connection

    def _settle(self, outcome: Outcome, test: str) -> None:
        """Note what a reset cost; replace the clone if it could not make it equal to the template."""
        self.report.reset(outcome.reset, outcome.seconds, test)
        if outcome.spoiled:
            self.replace(f"{test or 'a block'}: {outcome.spoiled}")

    def replace(self, reason: str) -> None:
        """Drop the database and copy the template again under the same name, so that every URL stays right."""
        log.info("replacing clone %s: %s", self.name, reason)
        self.report.note(f"clone replaced after {reason}")
        adapters.closed(self.handle)
        self._disconnect()
        if (database := databases.find(self.server, self.name)) is not None:
            databases.drop(self.server, database, force=True)
        self._make()

    def _disconnect(self) -> None:
        for connection in (self._session.real if self._session else None, self._control):
            if connection is not None:
                connection.close()
        self._session = self._control = self._truncate = self._sequences = None

    def drop(self) -> None:
        """End the clone: close our connections, drop the database, release the lease. Failing is a warning, never an error: the
        next run finds the lease free and drops what was left."""
        self._disconnect()
        try:
            if (database := databases.find(self.server, self.name)) is not None:
                databases.drop(self.server, database, force=True)
            log.info("dropped clone %s", self.name)
        except (psycopg.Error, NotOurs) as error:
            log.warning("clone %s could not be dropped and is left to the next run: %s", self.name, str(error).strip())
            self.report.note(f"clone {self.name} could not be dropped; the next run does it")
        self.server.leases.give_up(self.name)

    def __enter__(self) -> Clone:
        """Point the application's handle at the clone for the block; at its end the clone is dropped."""
        self._binding.enter_context(adapters.bound(self.handle, self.url))
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._binding.close()
        finally:
            self.drop()
