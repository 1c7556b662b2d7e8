"""A database that one owner copies from a template, under a lease: made, connected to, replaced, put aside and dropped."""

from __future__ import annotations

import contextlib
import logging
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from ..adapters import handles
from ..databases import boundary, ddl
from ..databases.copying import claim_warm, copy
from ..databases.naming import Database, Mark, clone_name
from ..databases.ownership import licensed_here
from ..databases.prune import KEPT, keep
from ..databases.warm_pool import Pool
from ..errors import NotOurs, SandboxLimit, ServerError, SettingsError, TemplateError, WriteEscaped
from ..process.clock import monotonic
from ..reset.base import Outcome, pick
from ..reset.rebuild import Drop
from ..reset.rollback import Rollback
from ..reset.sequences import Sequence
from ..reset.transactions import NOW, Moment, Verdict
from ..reset.truncate.control import Spoiled
from ..sandbox.session import Session
from ..schema.sources import Schema
from ..server import session_options
from ..server.connection import connect
from ..server.dsn import Dsn, libpq_options
from ..server.reconnect import is_alive, recover, told, twice
from ..server.server import Server
from ..server.sessions import application_name, named
from ..settings import RESETS
from .isolation import Isolation, data_lost
from .report import Report
from .roles import Role, unbound
from .snapshots import Snapshots
from .undo import Undo


def escaped(name: str, test: str, rows: Mapping[str, int], other: str) -> WriteEscaped:
    """Return the error that names a test which committed outside its sandbox.

    Arguments: `name`, of the database; `rows`, by table, how many were new, changed or gone; `other`, what else had changed.
    """
    shown = [f"{count or 'some'} row{'s' if count != 1 else ''} in {table}" for table, count in rows.items()]
    found = ", ".join([*shown, *([other] if other else [])])
    return WriteEscaped(
        f'{test or "a block"} committed to "{name}" outside its sandbox: {found}',
        "Rollback undoes what passes through the application's own handle. Another connection, thread or process wrote this; it has"
        " been removed.",
        'Isolate the test with @pytest.mark.dbclone(reset="truncate"), or let that code use the handle that dbclone binds.',
    )


Self = TypeVar("Self", bound="Owned")
log = logging.getLogger("dbclone")
_GOODBYE = 60.0  # seconds that the server may take to drop the clone at the end
Connection = psycopg.Connection[Any]
_PATIENCE = 2.0  # seconds for a prune to let go of a name


@dataclass(repr=False)
class Owned:
    """A database copied from a template, owned by one worker of one run for as long as its lease is held.

    Attributes: `name`; `dsn`; `owner`, the worker; `handle`, the application's database handle or None; `schema`, what the template
    was built from; `report`, what clones and resets cost; `moved`, is told where the application finds the database if that had to
    get another name; `role`, as whom the application connects (None: as the role that builds);
    `keep_count`, how many clones that tests left are kept at most, of the whole project.
    """

    server: Server
    name: str
    template: Database
    mark: Mark
    handle: Any = None
    schema: Schema | None = field(default=None, repr=False)
    report: Report = field(default_factory=Report)
    _undo: Undo = field(init=False, repr=False)
    _snapshots: Snapshots = field(init=False, repr=False)
    _drop: Drop = field(init=False, repr=False)
    moved: Callable[[Dsn], None] = field(default=lambda dsn: None, repr=False)
    _pool: Pool | None = field(default=None, repr=False)
    keep_count: int = KEPT
    role: Role | None = None
    warning: str = ""  # that row-level security does not bind whoever connects
    _replaced: bool = False
    _place: tuple[str, Dsn] = field(default=("", Dsn(())), repr=False)  # the name, and where it is
    _bound: bool = False
    _binding: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def __post_init__(self) -> None:
        self._undo = Undo(self.server, self.name, self.owner, self._connect_sandbox, self._sibling)
        self._snapshots = Snapshots(self.server, self.name, self.mark)
        self._drop = Drop(self._connect_drop, self._build)

    @classmethod
    def create(
        cls: type[Self], server: Server, template: Database, run: str, owner: str, handle: Any = None, schema: Schema | None = None
    ) -> Self:
        """Copy `template` for one owner, taking the lease first. `schema` is what the template was built from, for the reset drop.

        A warm clone that `prepare --workers` left is renamed instead, if there is one. Raises TemplateError, and
        psycopg.errors.InvalidCatalogName if the template has been dropped in the meantime.
        """
        settings = server.settings
        fingerprint = template.mark.fingerprint if template.mark is not None else ""
        mark = Mark.make("clone", settings.project, server.facts.system, run=run, worker=owner, fingerprint=fingerprint)
        clone = cls(server, clone_name(settings.project, run, owner), template, mark, handle, schema)
        # A session gets a lock that it holds already, so another clone of this very process has to be looked for.
        if server.leases.has(clone.name) or not server.leases.take(clone.name, patience=_PATIENCE):
            raise TemplateError(
                f'database "{clone.name}" is in use by another process',
                f"Its lease is held by {server.leases.holder(clone.name)}: two workers of one run have the same name.",
                "Give each worker a name of its own.",
            )
        try:
            clone._make()
            if settings.keep:
                clone._undo.truncating()  # says at once if a table to keep references one that is not
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
        """The clone's URL for the application, as its own role; it contains the password if there is one."""
        return self.app_dsn.url

    def admit(self, role: Role | None) -> None:
        """Lead the application here as `role` from now on, or as the role that builds (None)."""
        self.role, self._undo.apart = role, role is not None
        if role is None and not self.server.settings.role:
            self.warning = unbound(self.server, self.template, self.server.facts.role, self.handle)

    @property
    def owner(self) -> str:
        return self.mark.worker

    @property
    def _patience(self) -> str:
        """How long libpq waits for a connection, in seconds."""
        return self.dsn.get("connect_timeout", str(max(2, round(self.server.settings.connect_timeout))))

    def _make(self) -> None:
        started = monotonic()
        leftover = ddl.find(self.server, self.name)
        if leftover is not None:  # ours by its lease: a worker of this run died in the middle of its CREATE DATABASE
            ddl.drop(self.server, leftover, force=True)
        warm = claim_warm(self.server, self.template, self.name, self.mark)
        if not warm:
            copy(self.server, self.template.name, self.name, self.mark)
        self._undo.clone_seconds = monotonic() - started
        self._made()
        self.report.clone(self._undo.clone_seconds)
        log.info("%s clone %s of %s", "claimed warm" if warm else "created", self.name, self.template.name)

    def connect(self, test: str = "", **options: Any) -> Connection:
        """Return a new real psycopg connection to the clone, named after the worker and the test in the server's session list.

        Arguments: `options`, of `psycopg.connect`. Raises psycopg.Error.
        """
        return self._connect(self.dsn, test, **options)

    def _connect(self, dsn: Dsn, test: str = "", lasts: bool = False, **options: Any) -> Connection:
        """As `connect`. Arguments: `lasts`, the session is ours to end, whatever the role's settings say of idle ones."""
        if lasts:
            own = options.get("options") or libpq_options(dsn)
            options["options"] = f"{own} {session_options.options(self.server.facts.major)}".strip()
        options = {"application_name": application_name(self.owner, test), "connect_timeout": self._patience, **options}
        connection = connect(dsn, **options)
        self.server.sessions.add(connection)
        return connection

    def _connect_sandbox(self) -> Connection:
        """Return the connection that becomes the sandbox, which begins as the application's own would: as its role, with its
        options. Only how long it may be idle is not the application's, which does not know of this session and its transaction."""
        more: dict[str, Any] = {key: value for key, value in handles.parameters(self.handle).items() if not self.dsn.get(key)}
        return self._connect(self.app_dsn, autocommit=True, lasts=True, **more)

    def _connect_drop(self) -> Connection:
        """Return the connection over which everything is dropped."""
        connection = self.connect("drop", autocommit=True, lasts=True)
        try:
            licensed_here(connection, self.server, self.name, self._undo.made)
        except BaseException:
            connection.close()
            raise
        return connection

    def _made(self) -> None:
        """Note which database it is that this process has just made, and when."""
        query = sql.SQL("SELECT {}, oid::int8 FROM pg_database WHERE datname = %s").format(sql.SQL(NOW))
        ((*moment, self._undo.made),) = self.server.connection.execute(query, [self.name]).fetchall()
        self._undo.created = Moment.of(tuple(moment))

    def _build(self) -> None:
        """Run the schema and the seed again, with the handle led here as the role that builds, as when the template was built."""
        assert self.schema is not None, "a clone made without its schema cannot be built again"
        schema = boundary.on(self.server, self.schema)
        if self.role is None or not self._bound:
            schema.build(self.dsn.url, log.info)
            return
        self._binding.close()
        try:
            with handles.bound(self.handle, self.dsn.url):
                schema.build(self.dsn.url, log.info)
        finally:
            self._binding.enter_context(handles.bound(self.handle, self.url))

    def _move(self, reason: str) -> None:
        """Go on under another name: somebody is in the database whom we may not send away. The next run drops it."""
        self.report.note(f"clone {self.name} is left to the next run, because it cannot be dropped: {reason}")
        self.server.leases.give_up(self.name)
        self.name = clone_name(self.mark.project, self.mark.run, f"{self.owner} {secrets.token_hex(4)}")
        self.server.leases.take(self.name)
        self._undo.name = self._snapshots.name = self.name
        if self._bound:
            self._binding.close()
            self._binding.enter_context(handles.bound(self.handle, self.url))
        self.moved(self.app_dsn)

    def _put_aside(self) -> None:
        """Leave the database to nobody, so that it can be copied."""
        handles.closed(self.handle)
        self._undo.disconnect()

    @contextlib.contextmanager
    def _sibling(self) -> Iterator[str]:
        """Make another copy of the template for the block."""
        name = clone_name(self.mark.project, self.mark.run, f"{self.owner} {secrets.token_hex(4)}")
        with ddl.private(self.server, name):
            copy(self.server, self.template.name, name, self.mark)
            yield name

    def replace(self, reason: str, quiet: bool = False, often: bool = False, gone: bool = False) -> None:
        """Put a fresh copy of the template in the place of the database, under the same name, so that every URL stays right.

        Arguments: `reason`, for the log and, unless `quiet`, the report; `often`, it will be needed again: from now on copies are
        made ahead in the background, as they are from the second time on anyway; `gone`, the database has another name already.
        If the connection to the server is lost, it is made anew, once. Raises ServerError, TemplateError, NotOurs, psycopg.Error.
        """
        log.info("replacing clone %s: %s", self.name, reason)
        if not quiet:
            self.report.note(f"clone replaced after {reason}")
        handles.closed(self.handle)
        self._undo.forget()
        self._drop.empty = False
        twice(self.server, "the clone was replaced", lambda: self._renew(often, gone), self._recover)
        self._replaced = self._replaced or not gone
        if lost := self._undo.refill():
            self.report.note(f"what fixtures of the whole session had written was lost with the clone: {lost}")

    def _recover(self) -> None:
        """Connect again. What was made ahead is not what it was, if the server has lost what it committed last."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        recover(self.server)

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
        self._made()

    def _keep_for(self, label: str) -> bool:
        """Keep the clone for a test, and go on with a fresh one; return False, and say so, if that is impossible."""
        try:
            self._put_by(label)
        except (psycopg.Error, NotOurs) as error:
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
        """End the clone: close our connections, drop the database, release the lease. Failing is a warning, never an error: the
        next run finds the lease free and drops what was left. A server that is busy is not waited for longer than a minute. A
        forked process drops nothing: it is its parent's."""
        if self.server.home.left:
            return
        self._undo.disconnect()
        self._snapshots.drop()
        if self._pool is not None:
            self._pool.close()
        try:
            twice(self.server, "the clone was dropped", self._drop_it, lambda: recover(self.server))
            log.info("dropped clone %s", self.name)
        except (psycopg.Error, NotOurs, ServerError) as error:
            log.warning("clone %s could not be dropped and is left to the next run: %s", self.name, str(error).strip())
            self.report.note(f"clone {self.name} could not be dropped; the next run does it")
        self.server.leases.give_up(self.name)

    def _drop_it(self) -> None:
        if (database := ddl.find(self.server, self.name)) is not None:
            ddl.drop(self.server, database, force=True, patience=_GOODBYE)

    def __enter__(self: Self) -> Self:
        """Point the application's handle at the clone for the block; at its end the clone is dropped."""
        self._binding.enter_context(handles.bound(self.handle, self.url))
        self._bound = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self.server.home.left:
            return
        try:
            self._binding.close()
        finally:
            self.drop()


@dataclass(repr=False)
class Clone(Owned):
    """A database copied from a template, owned by one worker of one run for as long as its lease is held, in which tests are
    isolated. Use `Template.clone`.

    Attributes: `name`; `dsn`; `owner`, the worker; `handle`, the application's database handle or None; `report`, what its resets
    cost; `escalated`, tests that committed outside a sandbox before, which auto isolates by truncate; `isolating`, how many blocks
    of `isolated` are open.
    """

    escalated: set[str] = field(default_factory=set)
    isolating: int = 0
    _keeping: str = ""  # what the isolation that ends now is to be kept for
    _lending: contextlib.ExitStack | None = field(default=None, repr=False)
    _lost: str = ""  # what has become of the data of a class or module that is still open

    @contextlib.contextmanager
    def isolated(self, reset: str = "auto", test: str = "", reset_sequences: bool | None = None) -> Iterator[Isolation]:
        """Run the block with the clone equal to its template at the start, and undo whatever the block wrote at its end.

        Arguments: `reset`, "auto", "rollback", "truncate", "clone", "drop" or "none"; `test`, what runs in the block, for sessions
        and reports; `reset_sequences`, put sequences back under rollback too (default: the setting). Raises SandboxLimit,
        ResetBlocked, and WriteEscaped if the setting `strict` is on.
        """
        self.server.home.needed()
        wanted = self.choose(reset, test)
        sequences = self.server.settings.reset_sequences if reset_sequences is None else reset_sequences
        self._look(wanted)
        with self._isolating(), named(application_name(self.owner, test) if test else ""):
            if wanted == "rollback":
                with self._layer(test, sequences, reset == "auto") as session:
                    isolation = self._view(wanted, test, session)
                    try:
                        yield isolation
                    finally:
                        self._keeping = isolation.kept if self._over(isolation) else ""
                return
            if self._lending is not None:
                raise SandboxLimit(
                    f"a test wants reset={wanted!r} inside a class or module that is isolated by rollback",
                    f"{test or 'It'} would not see the data of dbclone_class or dbclone_module, which are in a transaction.",
                    "Use rollback for this test, or make the data in the test.",
                )
            twice(self.server, "a test began", lambda: self._prepare(wanted), self._begin_anew)
            isolation = self._view(wanted, test, None)
            try:
                yield isolation
            finally:
                if self._over(isolation) and not (isolation.kept and self._keep_for(isolation.kept)):
                    self._settle(self._finish(wanted), test)

    @contextlib.contextmanager
    def _isolating(self) -> Iterator[None]:
        """Follow what the application has put behind its handle, and count the block."""
        handles.look()
        self.isolating += 1
        try:
            yield
        finally:
            self.isolating -= 1

    def _over(self, isolation: Isolation) -> bool:
        """Close what a test opened; return False in a forked process, in which nothing is over: all of it is its parent's."""
        if not self.server.home.left:
            isolation.close()
        return not self.server.home.left

    def _look(self, wanted: str = "") -> None:
        """Have a fresh clone if this one is known not to be equal to the template before a test begins.

        With the connection that holds the lease, the server may have lost what it committed last: the reset of the last test.
        """
        if self._lending is None and not is_alive(self.server.connection):
            self.replace("the connection to the server was lost between two tests")
        elif self._drop.empty and wanted != "drop":
            self.replace("the reset drop", quiet=True)

    def _prepare(self, wanted: str) -> None:
        """Make ready for a test that commits for real."""
        if wanted == "truncate":
            reset = self._undo.truncating()
            if self._undo.moved:
                reset.restore_sequences()  # earlier rollbacks left them where they were
                self._undo.moved = False
        elif wanted == "drop":
            self._drop.before()

    def _begin_anew(self) -> None:
        """Have a fresh clone, because it has shown that our sessions were lost since the last test."""
        if self._lending is not None:
            self._lost = "its connection was lost between two tests"
            raise data_lost(self._lost)
        self.replace("its connections were lost between two tests")

    def _finish(self, wanted: str) -> Outcome:
        if wanted in ("truncate", "drop"):
            try:
                if wanted == "truncate":
                    return self._undo.truncating().after()
                handles.closed(self.handle)
                self._undo.forget()
                return self._drop.after()
            except (psycopg.Error, ServerError) as error:
                what = type(error).__name__ if wanted == "truncate" else "not everything could be dropped"
                return Outcome(wanted, 0.0, spoiled=f"{what}: {str(error).strip().splitlines()[0]}")
            except BaseException:
                self.replace("a reset that failed", quiet=True)  # the next test must not find what this one left
                raise
        started = monotonic()
        if wanted == "clone":
            self.replace("a test that wanted a fresh clone", quiet=True, often=True)
        else:
            self._undo.tainted = True
        return Outcome(wanted, monotonic() - started)

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[Isolation]:
        """Keep what the block writes for as long as it lasts, as an outer layer of the tests inside it, and undo it at the end.

        Arguments: `name`, of the class or module, for reports. Raises SandboxLimit if the handle cannot be sandboxed.
        """
        self._look()
        with self._layer(name) as session:
            isolation = self._view("rollback", name, session)
            try:
                yield isolation
            finally:
                self._over(isolation)

    def _view(self, reset: str, test: str, session: Session | None) -> Isolation:
        return Isolation(
            self.name,
            self.url,
            reset,
            test,
            handles.present(self.handle),
            lambda **options: self.connect(test, **options),
            self.snapshot,
            self.restore,
            session,
            dsn=self.dsn,
        )

    def choose(self, reset: str, test: str = "") -> str:
        """Return the reset that will be used for `reset` and a test.

        Under auto it is truncate where there is no handle to lend a sandbox to, because then the application has connections of
        its own which commit for real, for a test that was seen committing outside its sandbox, and where the application has a role
        of its own: a sandbox is one session, in which the test itself would see and write no more than that. Raises SettingsError.
        """
        if reset not in RESETS:
            choice = ", ".join(RESETS)
            raise SettingsError(f"{reset!r} is no reset", f"{test or 'A block'} asked for it.", f"Choose one of {choice}.")
        nowhere = handles.present(self.handle) is None
        outside = nowhere or self.role is not None or test in self.escalated or bool(handles.refusal(self.handle))
        if reset == "auto" and self._lending is None and outside:
            return "truncate"
        return pick(reset)

    @contextlib.contextmanager
    def _layer(self, test: str, sequences: bool = False, auto: bool = False) -> Iterator[Session]:
        """Hold one more level of the sandbox for the block; the outermost lends it to the application's handle."""
        outermost = self._lending is None
        if not outermost and (self._lost or self._undo.broken):
            self._lost = self._lost or "its connection was lost"
            raise data_lost(self._lost)

        def begin() -> tuple[Session, tuple[Sequence, ...] | None, Rollback]:
            session = self._undo.sandbox()
            positions = self._undo.positions if sequences and outermost else None
            level = Rollback(session, positions, self._undo.witness, self._undo.owner_session)
            level.before()
            return session, positions, level

        with contextlib.ExitStack() as stack:
            session, positions, level = twice(self.server, "a test began", begin, self._begin_anew)
            try:
                if outermost:
                    stack.callback(session.disconnect)
                    stack.enter_context(handles.lent(self.handle, session))
                    self._lending = stack
                yield session
            finally:
                if outermost:
                    self._lending, self._lost = None, ""
                if self.server.home.left:
                    self._lending = stack.pop_all()  # kept, so that nothing of the parent's ends here
                else:
                    label, self._keeping = self._keeping, ""
                    outcome = level.after() if not label else self._kept(level, stack, label)
                    stack.close()
                    self._undo.moved = self._undo.moved or positions is None
                    self._escalate(session.met(), test, auto)
                    self._settle(outcome, test, auto)
                    self._undo.keep_small()

    def _kept(self, level: Rollback, stack: contextlib.ExitStack, label: str) -> Outcome:
        """Commit what a test left in its sandbox, and keep it. Data of a class or module around it go along."""
        started, failure = monotonic(), level.keep()
        stack.close()
        if failure or not self._keep_for(label):
            why = f"it could not be kept: {failure or 'see above'}"
            return Outcome("rollback", monotonic() - started, spoiled=why)
        self._lost = f"{label} failed, and what it left was kept" if self._lending is not None else ""
        return Outcome("rollback", monotonic() - started)

    def _settle(self, outcome: Outcome, test: str, auto: bool = False) -> None:
        """Note what a reset cost; replace the clone if it could not make it equal to the template; look for what escaped."""
        self.report.reset(outcome.reset, outcome.seconds, test)
        for note in outcome.notes:
            self.report.note(f"{test or 'a block'}: {note}")
        if outcome.spoiled:
            self.replace(f"{test or 'a block'}: {outcome.spoiled}")
            self._lost = f"{test or 'a block'}: {outcome.spoiled}" if self._lending is not None else ""
        elif outcome.verdict is not Verdict.NOTHING and not self._undo.tainted:
            self._search(outcome, test, auto)

    def _escalate(self, limit: str, test: str, auto: bool) -> None:
        """Remember a test in which the sandbox refused something, even if the application has swallowed the error. It is not run
        again at once: its fixtures and what it did outside the database cannot be undone."""
        if limit and auto:
            self.escalated.add(test)
            self.report.escaped.append(test)
            self.report.note(f"{test} needs real transactions ({limit}): from the next run on it begins with truncate")

    def _search(self, outcome: Outcome, test: str, auto: bool) -> None:
        """Find out whether what was committed on this server since the last reset is in this clone; remove it, and say so.

        What was committed before the test began is not the test's: a fixture of a wider scope made it, and it stays.
        """
        try:
            rows, other = self._undo.truncating().dirty(outcome.begun)
        except Spoiled as hidden:  # who committed it, and where, nobody can say
            if self._lending is None:  # else when the class or module has ended
                self.replace(f"{test or 'a block'}: {hidden}", quiet=True)
            return
        except psycopg.Error as failed:  # what it asks about is not there any more, or somebody locks it
            rows, other = {}, f"something that hides what else it was: {str(failed).strip().splitlines()[0]}"
        if not (rows or other):
            return
        if outcome.verdict is Verdict.BEFORE or not (any(rows.values()) or other):
            self._undo.adopt()
            return
        if auto:
            self.escalated.add(test)
            self.report.escaped.append(test)
        error = escaped(self.name, test, rows, other)
        self.report.note(error.message)
        self._settle(self._finish("truncate"), test)
        if self.server.settings.strict:
            raise error
        warnings.warn(str(error), stacklevel=2)

    def keep(self, label: str) -> str:
        """Keep the committed state in a database of its own, named after `label`, and go on with a fresh clone under the old name.

        Returns the name; `python -m dbclone status` lists it, `prune` drops it after `retain_days`. Raises SandboxLimit while a
        test is isolated by rollback, and psycopg.errors.ObjectInUse if a session may not be sent away.
        """
        self._aside("keep")
        return self._put_by(label)

    def snapshot(self, label: str) -> None:
        """Put the committed state aside as `label`, to `restore` it any number of times; it lasts as long as the clone.

        Connections of the application's handle are closed for it. Raises ResetBlocked if somebody else is connected, and
        SandboxLimit while a test is isolated by rollback.
        """
        self._aside("snapshot")
        with told(self.server, "a snapshot was taken"):
            self._snapshots.take(label)

    def restore(self, label: str) -> None:
        """Come back to the state that `snapshot` put aside, whatever has been committed since. Raises TemplateError if there is
        none of that name."""
        self._aside("restore")
        with told(self.server, "a snapshot was restored"):
            self._snapshots.come_back(label)

    def _aside(self, what: str) -> None:
        if self._lending is not None:
            raise SandboxLimit(
                f"{what}() inside a rollback",
                "It copies what has been committed, and in a sandbox nothing ever is.",
                'Isolate this test with @pytest.mark.dbclone(reset="truncate"), or use savepoint().',
            )
        self._put_aside()
