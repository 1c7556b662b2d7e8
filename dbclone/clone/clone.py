"""A clone, one worker's own copy of a template under a lease: made, replaced, put aside and
dropped, and tests isolated in it."""

from __future__ import annotations

import contextlib
import logging
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from ..adapters import handles
from ..databases import boundary, ddl
from ..databases.copying import claim_warm_clone, copy
from ..databases.naming import Database, Mark, clone_name
from ..databases.ownership import verify_connected
from ..databases.prune import KEPT, keep
from ..databases.warm_pool import Pool
from ..errors import NotOwned, SandboxLimit, ServerError, SettingsError, TemplateError, WriteEscaped
from ..process.clock import monotonic
from ..reset.base import Outcome, Strategy, Task, failure
from ..reset.rollback import data_lost
from ..reset.state import Condition, ResetState
from ..reset.strategies import STRATEGIES
from ..reset.transactions import NOW, Moment, Verdict
from ..reset.truncate.control import CannotRestore
from ..reset.truncate.strategy import Truncate
from ..schema.sources import Schema
from ..server import session_options
from ..server.connection import connect
from ..server.dsn import Dsn, libpq_options
from ..server.reconnect import is_alive, reconnect, retry_once, translate_lost_connection
from ..server.server import Server
from ..server.sessions import application_name, named
from ..settings import RESETS
from .isolation import Isolation
from .report import Report
from .roles import Role, unbound
from .snapshots import Snapshots


def escaped(name: str, test: str, rows: Mapping[str, int], other: str) -> WriteEscaped:
    """Return the error that names a test which committed outside its sandbox.

    Arguments: `name`, of the database; `rows`, by table, how many were new, changed or gone;
    `other`, what else had changed.
    """
    shown = [
        f"{count or 'some'} row{'s' if count != 1 else ''} in {table}"
        for table, count in rows.items()
    ]
    found = ", ".join([*shown, *([other] if other else [])])
    return WriteEscaped(
        f'{test or "a block"} committed to "{name}" outside its sandbox: {found}',
        "Rollback undoes what passes through the application's own handle. Another"
        " connection, thread or process wrote this; it has"
        " been removed.",
        'Isolate the test with @pytest.mark.dbclone(reset="truncate"), or let that code use'
        " the handle that dbclone binds.",
    )


log = logging.getLogger("dbclone")
_GOODBYE = 60.0  # seconds that the server may take to drop the clone at the end
Connection = psycopg.Connection[Any]
_PATIENCE = 2.0  # seconds for a prune to let go of a name


@dataclass(repr=False)
class Clone:
    """A database copied from a template, owned by one worker of one run for as long as its lease is
    held, in which tests are isolated. Use `Template.clone`.

    Attributes: `name`; `dsn`; `owner`, the worker; `handle`, the application's database handle or
    None; `schema`, what the template was built from; `report`, what clones and resets cost;
    `on_move`, is told where the application finds the database if that had to get another name;
    `role`, as whom the application connects (None: as the role that builds); `keep_count`, how many
    clones that tests left are kept at most, of the whole project; `escalated`, tests that committed
    outside a sandbox before, which auto isolates by truncate; `state`, what is known of the
    database since it was a copy of its template.
    """

    server: Server
    name: str
    template: Database
    mark: Mark
    handle: Any = None
    schema: Schema | None = field(default=None, repr=False)
    report: Report = field(default_factory=Report)
    state: ResetState = field(init=False, repr=False)
    _snapshots: Snapshots = field(init=False, repr=False)
    on_move: Callable[[Dsn], None] = field(default=lambda dsn: None, repr=False)
    _pool: Pool | None = field(default=None, repr=False)
    keep_count: int = KEPT
    escalated: set[str] = field(default_factory=set)
    isolating: int = 0  # how many blocks of `isolated` are open
    role: Role | None = None
    warning: str = ""  # that row-level security does not bind whoever connects
    _replaced: bool = False
    _place: tuple[str, Dsn] = field(default=("", Dsn(())), repr=False)  # the name, and where it is
    _bound: bool = False
    _binding: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def __post_init__(self) -> None:
        self.state = ResetState(
            self.server, self.name, self.owner, self._connect_sandbox, self._sibling
        )
        self._snapshots = Snapshots(self.server, self.name, self.mark)

    @classmethod
    def create(
        cls,
        server: Server,
        template: Database,
        run: str,
        owner: str,
        handle: Any = None,
        schema: Schema | None = None,
    ) -> Clone:
        """Copy `template` for one owner, taking the lease first. `schema` is what the template was
        built from, for the reset drop.

        A warm clone that `prepare --workers` left is renamed instead, if there is one. Raises
        TemplateError, and psycopg.errors.InvalidCatalogName if the template has been dropped in the
        meantime.
        """
        settings = server.settings
        fingerprint = template.mark.fingerprint if template.mark is not None else ""
        mark = Mark.make(
            "clone",
            settings.project,
            server.facts.system,
            run=run,
            worker=owner,
            fingerprint=fingerprint,
        )
        clone = cls(
            server, clone_name(settings.project, run, owner), template, mark, handle, schema
        )
        # A session gets a lock that it holds already, so another clone of this very process has to
        # be looked for.
        if server.leases.holds(clone.name) or not server.leases.acquire(
            clone.name, patience=_PATIENCE
        ):
            raise TemplateError(
                f'database "{clone.name}" is in use by another process',
                f"Its lease is held by {server.leases.holder(clone.name)}: two workers of one"
                f" run have the same name.",
                "Give each worker a name of its own.",
            )
        try:
            clone._make()
            if settings.keep:
                clone.state.put_back()  # says at once if a table to keep references one that is not
        except BaseException:
            clone.drop()
            raise
        return clone

    def __repr__(self) -> str:
        return f"<dbclone {self.name} of {self.owner}>"

    @property
    def dsn(self) -> Dsn:
        name, dsn = self._place
        if name != self.name:
            self._place = self.name, (dsn := self.server.database(self.name))
        return dsn

    @property
    def app_dsn(self) -> Dsn:
        """Where the application is led: to the database, as its own role if it has one."""
        return self.dsn if self.role is None else self.role.dsn(self.dsn)

    @property
    def url(self) -> str:
        """The clone's URL for the application, as its own role; it contains the password if there
        is one."""
        return self.app_dsn.url

    def admit(self, role: Role | None) -> None:
        """Lead the application here as `role` from now on, or as the role that builds (None)."""
        self.role, self.state.apart = role, role is not None
        if role is None and not self.server.settings.role:
            self.warning = unbound(self.server, self.template, self.server.facts.role, self.handle)

    @property
    def owner(self) -> str:
        return self.mark.worker

    @property
    def _patience(self) -> str:
        """How long libpq waits for a connection, in seconds."""
        return self.dsn.get(
            "connect_timeout", str(max(2, round(self.server.settings.connect_timeout)))
        )

    def _make(self) -> None:
        started = monotonic()
        leftover = ddl.find(self.server, self.name)
        # Ours by its lease: a worker of this run died in the middle of its CREATE DATABASE
        if leftover is not None:
            ddl.drop(self.server, leftover, force=True)
        warm = claim_warm_clone(self.server, self.template, self.name, self.mark)
        if not warm:
            copy(self.server, self.template.name, self.name, self.mark)
        self.state.clone_seconds = monotonic() - started
        self._note_made()
        self.report.clone(self.state.clone_seconds)
        log.info(
            "%s clone %s of %s",
            "claimed warm" if warm else "created",
            self.name,
            self.template.name,
        )

    def connect(self, test: str = "", **options: Any) -> Connection:
        """Return a new real psycopg connection to the clone, named after the worker and the test in
        the server's session list.

        Arguments: `options`, of `psycopg.connect`. Raises psycopg.Error.
        """
        return self._connect(self.dsn, test, **options)

    def _connect(self, dsn: Dsn, test: str = "", lasts: bool = False, **options: Any) -> Connection:
        """As `connect`. Arguments: `lasts`, the session is ours to end, whatever the role's
        settings say of idle ones."""
        if lasts:
            own = options.get("options") or libpq_options(dsn)
            options["options"] = f"{own} {session_options.options(self.server.facts.major)}".strip()
        options = {
            "application_name": application_name(self.owner, test),
            "connect_timeout": self._patience,
            **options,
        }
        connection = connect(dsn, **options)
        self.server.sessions.add(connection)
        return connection

    def _connect_sandbox(self) -> Connection:
        """Return the connection that becomes the sandbox, which begins as the application's own
        would: as its role, with its options. Only how long it may be idle is not the application's,
        which does not know of this session and its transaction."""
        more: dict[str, Any] = {
            key: value
            for key, value in handles.connection_parameters(self.handle).items()
            if not self.dsn.get(key)
        }
        return self._connect(self.app_dsn, autocommit=True, lasts=True, **more)

    def connect_owner(self) -> Connection:
        """Return an autocommit connection that may drop what is in the clone."""
        connection = self._connect(self.dsn, "drop", autocommit=True, lasts=True)
        try:
            verify_connected(connection, self.server, self.name, self.state.made)
        except BaseException:
            connection.close()
            raise
        return connection

    def _note_made(self) -> None:
        """Note which database it is that this process has just made, and when."""
        query = sql.SQL("SELECT {}, oid::int8 FROM pg_database WHERE datname = %s").format(
            sql.SQL(NOW)
        )
        ((*moment, self.state.made),) = self.server.connection.execute(
            query, [self.name]
        ).fetchall()
        self.state.created = Moment.of(tuple(moment))

    def build(self) -> None:
        """Run the schema and the seed again, with the handle led here as the role that builds, as
        when the template was built."""
        assert self.schema is not None, "a clone made without its schema cannot be built again"
        schema = boundary.on_server(self.server, self.schema)
        if self.role is None or not self._bound:
            schema.build(self.dsn.url, log.info)
            return
        self._binding.close()
        try:
            with handles.bound_to(self.handle, self.dsn.url):
                schema.build(self.dsn.url, log.info)
        finally:
            self._binding.enter_context(handles.bound_to(self.handle, self.url))

    def _move(self, reason: str) -> None:
        """Go on under another name: somebody is in the database whom we may not send away. The next
        run drops it."""
        self.report.note(
            f"clone {self.name} is left to the next run, because it cannot be dropped: {reason}"
        )
        self.server.leases.release(self.name)
        self.name = clone_name(
            self.mark.project, self.mark.run, f"{self.owner} {secrets.token_hex(4)}"
        )
        self.server.leases.acquire(self.name)
        self.state.name = self._snapshots.name = self.name
        if self._bound:
            self._binding.close()
            self._binding.enter_context(handles.bound_to(self.handle, self.url))
        self.on_move(self.app_dsn)

    def _put_aside(self) -> None:
        """Leave the database to nobody, so that it can be copied."""
        handles.close(self.handle)
        self.state.disconnect()

    @contextlib.contextmanager
    def _sibling(self) -> Iterator[str]:
        """Make another copy of the template for the block."""
        name = clone_name(self.mark.project, self.mark.run, f"{self.owner} {secrets.token_hex(4)}")
        with ddl.temporary_database(self.server, name):
            copy(self.server, self.template.name, name, self.mark)
            yield name

    def replace(
        self, reason: str, quiet: bool = False, often: bool = False, gone: bool = False
    ) -> None:
        """Put a fresh copy of the template in the place of the database, under the same name, so
        that every URL stays right.

        Arguments: `reason`, for the log and, unless `quiet`, the report; `often`, it will be needed
        again: from now on copies are made ahead in the background, as they are from the second time
        on anyway; `gone`, the database has another name already. If the connection to the server is
        lost, it is made anew, once. Raises ServerError, TemplateError, NotOwned, psycopg.Error.
        """
        log.info("replacing clone %s: %s", self.name, reason)
        if not quiet:
            self.report.note(f"clone replaced after {reason}")
        handles.close(self.handle)
        self.state.forget()
        retry_once(
            self.server, "the clone was replaced", lambda: self._renew(often, gone), self._reconnect
        )
        self._replaced = self._replaced or not gone
        if lost := self.state.refill():
            self.report.note(
                f"what fixtures of the whole session had written was lost with the clone: {lost}"
            )

    def _reconnect(self) -> None:
        """Connect again. What was made ahead is not what it was, if the server has lost what it
        committed last."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        reconnect(self.server)

    def _renew(self, often: bool, gone: bool) -> None:
        try:
            if not gone and (self._pool is not None or often or self._replaced):
                self._swap()
            else:
                self._drop_it()
                self._make()
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectInUse) as error:
            self._move(str(error).strip())
            self._make()

    def _swap(self) -> None:
        if self._pool is None:
            self._pool = Pool(self.server, self.template, self.server.settings.clone_limit)
        self.report.clone(self._pool.swap(self.name, self.mark))
        self._note_made()

    def keep_for(self, label: str) -> bool:
        """Keep the committed state for a test, and go on with a fresh one; return False, and say
        so, if that is impossible."""
        try:
            self._put_by(label)
        except (psycopg.Error, NotOwned) as error:
            self.report.note(f"{label} could not be kept: {str(error).strip().splitlines()[0]}")
            return False
        return True

    def _put_by(self, label: str) -> str:
        self._put_aside()
        kept = keep(self.server, self.name, self.mark, label, self.keep_count)
        self.report.kept[kept] = f"what {label} left"
        self.replace(f"it was kept for {label}", quiet=True, gone=True)
        return kept

    def drop(self) -> None:
        """End the clone: close our connections, drop the database, release the lease. Failing is a
        warning, never an error: the next run finds the lease free and drops what was left. A server
        that is busy is not waited for longer than a minute. A forked process drops nothing: it is
        its parent's."""
        if self.server.home.forked:
            return
        self.state.disconnect()
        self._snapshots.drop()
        if self._pool is not None:
            self._pool.close()
        try:
            retry_once(
                self.server, "the clone was dropped", self._drop_it, lambda: reconnect(self.server)
            )
            log.info("dropped clone %s", self.name)
        except (psycopg.Error, NotOwned, ServerError) as error:
            log.warning(
                "clone %s could not be dropped and is left to the next run: %s",
                self.name,
                str(error).strip(),
            )
            self.report.note(f"clone {self.name} could not be dropped; the next run does it")
        self.server.leases.release(self.name)

    def _drop_it(self) -> None:
        if (database := ddl.find(self.server, self.name)) is not None:
            ddl.drop(self.server, database, force=True, patience=_GOODBYE)

    def __enter__(self) -> Clone:
        """Point the application's handle at the clone for the block;
        at its end the clone is dropped."""
        self._binding.enter_context(handles.bound_to(self.handle, self.url))
        self._bound = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self.server.home.forked:
            return
        try:
            self._binding.close()
        finally:
            self.drop()

    @contextlib.contextmanager
    def isolated(
        self, reset: str = "auto", test: str = "", reset_sequences: bool | None = None
    ) -> Iterator[Isolation]:
        """Run the block with the clone equal to its template at the start, and undo whatever the
        block wrote at its end.

        Arguments: `reset`, "auto", "rollback", "truncate", "clone", "drop" or "none"; `test`, what
        runs in the block, for sessions and reports; `reset_sequences`, put sequences back under
        rollback too (default: the setting). Raises SandboxLimit, ResetBlocked, and WriteEscaped if
        the setting `strict` is on.
        """
        self.server.home.require()
        sequences = (
            self.server.settings.reset_sequences if reset_sequences is None else reset_sequences
        )
        strategy = STRATEGIES[self.choose(reset, test)](
            self, Task(test, sequences, reset == "auto")
        )
        with (
            self._isolating(),
            named(application_name(self.owner, test) if test else ""),
            self._run(strategy) as isolation,
        ):
            yield isolation

    @contextlib.contextmanager
    def _isolating(self) -> Iterator[None]:
        """Follow what the application has put behind its handle, and count the block."""
        handles.look()
        self.isolating += 1
        try:
            yield
        finally:
            self.isolating -= 1

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[Isolation]:
        """Keep what the block writes for as long as it lasts, as an outer layer of the tests inside
        it, and undo it at the end.

        Arguments: `name`, of the class or module, for reports. Raises SandboxLimit if the handle
        cannot be sandboxed.
        """
        with self._run(STRATEGIES["rollback"](self, Task(name))) as isolation:
            yield isolation

    @contextlib.contextmanager
    def _run(self, strategy: Strategy) -> Iterator[Isolation]:
        """Run the block in the isolation that a strategy gives."""
        self._make_sound(strategy)
        retry_once(self.server, "a test began", strategy.begin, self._begin_anew)
        isolation = self._view(strategy)
        try:
            yield isolation
        finally:
            # Else nothing is over in this forked process: all of it is its parent's
            if not self.server.home.forked:
                isolation.close()
                self._settle(strategy.end(isolation.kept), strategy.task)

    def choose(self, reset: str, test: str = "") -> str:
        """Return the reset that will be used for `reset` and a test.

        Under auto it is truncate where there is no handle to lend a sandbox to, because then the
        application has connections of its own which commit for real, for a test that was seen
        committing outside its sandbox, and where the application has a role of its own: a sandbox
        is one session, in which the test itself would see and write no more than that. Raises
        SettingsError.
        """
        if reset not in RESETS:
            choice = ", ".join(RESETS)
            raise SettingsError(
                f"{reset!r} is no reset",
                f"{test or 'A block'} asked for it.",
                f"Choose one of {choice}.",
            )
        if reset != "auto":
            return reset
        nowhere = handles.present(self.handle) is None
        outside = (
            nowhere
            or self.role is not None
            or test in self.escalated
            or bool(handles.unsupported_reason(self.handle))
        )
        return "truncate" if outside and not self.state.layered else "rollback"

    def _make_sound(self, strategy: Strategy) -> None:
        """Have a fresh clone if this one is known not to be what a test starts from.

        With the connection that holds the lease, the server may have lost what it committed last:
        the reset of the last test.
        """
        if not self.state.layered and not is_alive(self.server.connection):
            self.replace("the connection to the server was lost between two tests")
        elif self.state.condition is Condition.EMPTY and not strategy.fills_empty:
            self.replace("the reset drop", quiet=True)

    def _begin_anew(self) -> None:
        """Have a fresh clone: our sessions turn out to have been lost since the last test."""
        if self.state.layered:
            raise data_lost(self.state.lose("its connection was lost between two tests"))
        self.replace("its connections were lost between two tests")

    def _view(self, strategy: Strategy) -> Isolation:
        test = strategy.task.test
        return Isolation(
            self.name,
            self.url,
            strategy.name,
            test,
            handles.present(self.handle),
            lambda **options: self.connect(test, **options),
            self.snapshot,
            self.restore,
            strategy.session,
            dsn=self.dsn,
        )

    def _settle(self, outcome: Outcome, task: Task) -> None:
        """Note what a reset cost; replace the clone if it could not make it equal to the template;
        look for what escaped."""
        test = task.test or "a block"
        if outcome.limit and task.auto:
            self._escalate(task.test)
            self.report.note(
                f"{task.test} needs real transactions ({outcome.limit}): from the next run on"
                f" it begins with truncate"
            )
        self.report.reset(outcome.reset, outcome.seconds, task.test)
        for note in outcome.notes:
            self.report.note(f"{test}: {note}")
        if outcome.spoiled:
            self.replace(f"{test}: {outcome.spoiled}")
            if self.state.layered:
                self.state.lose(f"{test}: {outcome.spoiled}")
        elif outcome.verdict is not Verdict.NOTHING and self.state.condition is not Condition.DIRTY:
            self._search(outcome, task)

    def _escalate(self, test: str) -> None:
        """Remember a test that rollback cannot isolate. It is not run again at once: its fixtures
        and what it did outside the database cannot be undone."""
        self.escalated.add(test)
        self.report.escaped.append(test)

    def _search(self, outcome: Outcome, task: Task) -> None:
        """Find out whether what was committed on this server since the last reset is in this clone;
        remove it, and say so.

        What was committed before the test began is not the test's: a fixture of a wider scope made
        it, and it stays.
        """
        try:
            rows, other = self.state.put_back().dirty(outcome.begun)
        except CannotRestore as hidden:  # who committed it, and where, nobody can say
            if not self.state.layered:  # else when the class or module has ended
                self.replace(f"{task.test or 'a block'}: {hidden}", quiet=True)
            return
        except (
            psycopg.Error
        ) as failed:  # what it asks about is not there any more, or somebody locks it
            rows, other = {}, f"something that hides what else it was: {failure(failed)}"
        if not (rows or other):
            return
        if outcome.verdict is Verdict.BEFORE or not (any(rows.values()) or other):
            self.state.adopt()
            return
        if task.auto:
            self._escalate(task.test)
        error = escaped(self.name, task.test, rows, other)
        self.report.note(error.message)
        self._settle(Truncate(self, task).undo(), task)
        if self.server.settings.strict:
            raise error
        warnings.warn(str(error), stacklevel=2)

    def keep(self, label: str) -> str:
        """Keep the committed state in a database of its own, named after `label`, and go on with a
        fresh clone under the old name.

        Returns the name; `python -m dbclone status` lists it, `prune` drops it after `retain_days`.
        Raises SandboxLimit while a test is isolated by rollback, and psycopg.errors.ObjectInUse if
        a session may not be sent away.
        """
        self._aside("keep")
        return self._put_by(label)

    def snapshot(self, label: str) -> None:
        """Put the committed state aside as `label`, to `restore` it any number of times; it lasts
        as long as the clone.

        Connections of the application's handle are closed for it. Raises ResetBlocked if somebody
        else is connected, and SandboxLimit while a test is isolated by rollback.
        """
        self._aside("snapshot")
        with translate_lost_connection(self.server, "a snapshot was taken"):
            self._snapshots.take(label)

    def restore(self, label: str) -> None:
        """Come back to the state that `snapshot` put aside, whatever has been committed since.
        Raises TemplateError if there is none of that name."""
        self._aside("restore")
        with translate_lost_connection(self.server, "a snapshot was restored"):
            self._snapshots.restore(label)

    def _aside(self, what: str) -> None:
        if self.state.layered:
            raise SandboxLimit(
                f"{what}() inside a rollback",
                "It copies what has been committed, and in a sandbox nothing ever is.",
                'Isolate this test with @pytest.mark.dbclone(reset="truncate"), or use'
                " savepoint().",
            )
        self._put_aside()
