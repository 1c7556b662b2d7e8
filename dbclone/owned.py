"""A database that one owner copies from a template, under a lease: made, connected to, replaced, put aside and dropped."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from . import adapters, boundary, databases, lasting
from .clock import monotonic
from .connect import connect
from .copying import claim_warm, copy
from .dsn import Dsn, libpq_options
from .errors import NotOurs, ServerError, TemplateError
from .keeping import KEPT, keep
from .licence import licensed_here
from .marks import Database, Mark, clone_name
from .pool import Pool
from .recovery import recover, twice
from .report import Report
from .reset.drop import Drop
from .reset.witness import NOW, Moment
from .roles import Role, unbound
from .schema import Schema
from .server import Server
from .sessions import application_name
from .snapshots import Snapshots
from .undo import Undo

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
        leftover = databases.find(self.server, self.name)
        if leftover is not None:  # ours by its lease: a worker of this run died in the middle of its CREATE DATABASE
            databases.drop(self.server, leftover, force=True)
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
            options["options"] = f"{own} {lasting.options(self.server.facts.major)}".strip()
        options = {"application_name": application_name(self.owner, test), "connect_timeout": self._patience, **options}
        connection = connect(dsn, **options)
        self.server.sessions.add(connection)
        return connection

    def _connect_sandbox(self) -> Connection:
        """Return the connection that becomes the sandbox, which begins as the application's own would: as its role, with its
        options. Only how long it may be idle is not the application's, which does not know of this session and its transaction."""
        more: dict[str, Any] = {key: value for key, value in adapters.parameters(self.handle).items() if not self.dsn.get(key)}
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
            with adapters.bound(self.handle, self.dsn.url):
                schema.build(self.dsn.url, log.info)
        finally:
            self._binding.enter_context(adapters.bound(self.handle, self.url))

    def _move(self, reason: str) -> None:
        """Go on under another name: somebody is in the database whom we may not send away. The next run drops it."""
        self.report.note(f"clone {self.name} is left to the next run, because it cannot be dropped: {reason}")
        self.server.leases.give_up(self.name)
        self.name = clone_name(self.mark.project, self.mark.run, f"{self.owner} {secrets.token_hex(4)}")
        self.server.leases.take(self.name)
        self._undo.name = self._snapshots.name = self.name
        if self._bound:
            self._binding.close()
            self._binding.enter_context(adapters.bound(self.handle, self.url))
        self.moved(self.app_dsn)

    def _put_aside(self) -> None:
        """Leave the database to nobody, so that it can be copied."""
        adapters.closed(self.handle)
        self._undo.disconnect()

    @contextlib.contextmanager
    def _sibling(self) -> Iterator[str]:
        """Make another copy of the template for the block."""
        name = clone_name(self.mark.project, self.mark.run, f"{self.owner} {secrets.token_hex(4)}")
        with databases.private(self.server, name):
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
        adapters.closed(self.handle)
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
        if (database := databases.find(self.server, self.name)) is not None:
            databases.drop(self.server, database, force=True, patience=_GOODBYE)

    def __enter__(self: Self) -> Self:
        """Point the application's handle at the clone for the block; at its end the clone is dropped."""
        self._binding.enter_context(adapters.bound(self.handle, self.url))
        self._bound = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self.server.home.left:
            return
        try:
            self._binding.close()
        finally:
            self.drop()
