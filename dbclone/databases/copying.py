"""Copies of a template: made by CREATE DATABASE … TEMPLATE, few at a time; warm ones kept ready and
claimed by a rename."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from ..errors import TemplateError
from ..process.clock import monotonic, wait_until
from ..server.connection import exchange
from ..server.private.cluster import free_bytes
from ..server.server import Server
from . import ddl
from .naming import Database, Mark, spare_name
from .ownership import verify_owned
from .prune import prune

# What somebody else who wanted the same warm clone, or dropped it, leads to.
_LOST = (
    psycopg.errors.DuplicateDatabase,
    psycopg.errors.UniqueViolation,
    psycopg.errors.InvalidCatalogName,
    psycopg.errors.ObjectInUse,
)


_SEGMENT = 2 * 16 * 2**20  # bytes of log that a server may want besides what it copies


def copy(server: Server, template: str, name: str, mark: Mark, open_to_all: bool = True) -> Mark:
    """Create database `name` from a template, few at a time, with the settings and grants that a
    copy lacks; return its mark.

    Waits and tries again while somebody is connected to the template. Raises TemplateError,
    PermissionMissing, psycopg.Error.
    """
    settings = server.settings
    options: dict[str, str | bool] = {}
    if server.facts.major >= 15:
        options["STRATEGY"] = (
            settings.clone_strategy
            if settings.clone_strategy != "auto"
            else ("wal_log" if server.facts.durable else "file_copy")
        )
    if not open_to_all:
        options["ALLOW_CONNECTIONS"] = False
    pause, deadline = 0.05, monotonic() + 60
    with server.leases.slot("clone", settings.clone_limit, timeout=60):
        while True:
            try:
                made = ddl.create(server, name, template, mark, options)
                break
            except psycopg.errors.ObjectInUse as error:
                if monotonic() > deadline:
                    raise TemplateError(
                        f'template "{template}" cannot be copied: somebody has been connected'
                        f" to it for 60 s",
                        str(error).strip(),
                        "End those sessions; a template admits nobody, so a superuser must"
                        " have let them in.",
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
            except psycopg.errors.InsufficientPrivilege as error:
                raise ddl.to_create(server, template, error) from None
            except (psycopg.errors.DiskFull, psycopg.errors.InternalError_) as error:
                raise disk_full(server, template, error, f'to copy "{template}"') from None
    ddl.carry_over(server, template, name)
    return made


def disk_full(server: Server, template: str, error: psycopg.Error, purpose: str) -> TemplateError:
    """Return the error for a copy that found the disk full: how much it needs, what is free, and
    what a prune would free.

    Arguments: `template`, what is copied; `purpose`, what for, in words; `error`, which may be that
    a checkpoint failed: CREATE DATABASE asks for one, and says nothing of its reasons
    (src/backend/postmaster/checkpointer.c, RequestCheckpoint).
    """

    def shown(size: float) -> str:
        return f"{size / 2**20:.0f} MB"

    ((needed,),) = server.fetch(
        "SELECT coalesce(pg_database_size(oid), 0) FROM pg_database WHERE datname = %s", [template]
    )
    freed, everything = (
        sum(
            database.bytes
            for database, _ in prune(server, template, everything=all_, dry_run=True, sizes=True)
        )
        for all_ in (False, True)
    )
    free = (
        f"{shown(free_bytes(server.embedded.cluster.data))} are free"
        if server.embedded is not None
        else ""
    )
    sure = isinstance(error, psycopg.errors.DiskFull) or (
        server.embedded is not None and free_bytes(server.embedded.cluster.data) < needed + _SEGMENT
    )
    if not sure:
        return TemplateError(
            f"{server.where} failed {purpose}: {str(error).strip().splitlines()[0]}",
            str(error).strip(),
            "The server's log says why; most often its disk is full.",
        )
    return TemplateError(
        f"no space is left on {server.where} {purpose}: that needs {shown(needed)}"
        + (f", {free}" if free else ""),
        str(error).strip(),
        f"python -m dbclone prune would free {shown(freed)}, with --all {shown(everything)}."
        + ("" if free else " How much is free, a server tells nobody: look at its disk."),
    )


def warm(server: Server, template: Database, count: int) -> int:
    """Have `count` warm clones of a template wait for workers; return how many were made."""
    assert template.mark is not None
    values = {"fingerprint": template.mark.fingerprint, "template": str(template.oid)}
    mark = Mark.make("spare", server.settings.project, server.facts.system, **values)
    waiting = [
        d
        for d in ddl.list_databases(server)
        if d.mark and (d.mark.kind, d.mark.template) == ("spare", mark.template)
    ]
    for _ in range(missing := max(0, count - len(waiting))):
        name = spare_name(server.settings.project)
        # Until it is whole, nobody may claim it, nor take it for a leftover
        server.leases.acquire(name)
        try:
            copy(server, template.name, name, mark, open_to_all=False)
        finally:
            server.leases.release(name)
    return missing


def claim_warm_clone(server: Server, template: Database, name: str, mark: Mark) -> bool:
    """Make a warm clone of `template` the database `name`, with its mark, if one waits; return
    whether one did.

    Nobody has been able to connect to it since it was copied. Its lease tells whether somebody is
    still making it, or drops it now; the rename decides between several who want it.
    """
    for spare in ddl.list_databases(server):
        if (
            spare.mark is None
            or spare.mark.kind != "spare"
            or spare.sessions
            or spare.problem(server.facts.system)
        ):
            continue
        if spare.mark.template != str(template.oid) or not server.leases.acquire(spare.name):
            continue
        try:
            HandOver.compose(server, spare.name, spare.oid, name, mark).run(server)
            return True
        except _LOST:
            continue
        finally:
            server.leases.release(spare.name)
    return False


# Whether a database has this name and neither sessions nor prepared transactions, for which a
# rename waits up to 5 s. There is next to nothing in it to plan: after each copy the server plans
# with cold caches.
_FREE = sql.SQL(
    "SELECT pg_stat_get_db_numbackends({0}) = 0 AND (pg_identify_object(1262, {0}, 0)).name = {1}"
    " AND NOT EXISTS (SELECT FROM pg_prepared_xact() WHERE dbid = {0})"
)
# And whether its mark is the one that we wrote: whoever has written over it, means it to stay.
_MARKED = sql.SQL(" AND shobj_description({}, 'pg_database') = {}")
# Fails, and with it the transaction that it begins, unless a database still has its name.
_SAME = sql.SQL("SELECT 1 / coalesce(((pg_identify_object(1262, {}, 0)).name = {})::int, 0)")


@dataclass(frozen=True)
class HandOver:
    """How a warm clone, closed until then, becomes the database `name`, open and with its owner's
    mark.

    `spare` and `oid` are the warm clone's; `aside`, what a database that has the name is called
    from then on (empty: none has it). Most is composed before a test waits for it, because that
    costs as much as running it.
    """

    spare: str
    oid: int
    name: str
    mark: Mark
    aside: str
    take_place: bytes
    is_free: bytes  # asked about the warm clone by the next hand-over of the name

    @classmethod
    def compose(
        cls, server: Server, spare: str, oid: int, name: str, mark: Mark, aside: str = ""
    ) -> HandOver:
        def text(*parts: sql.Composed) -> bytes:
            return sql.SQL("; ").join(parts).as_bytes(server.connection)

        take_place = text(
            _SAME.format(sql.Literal(oid), sql.Literal(spare)),
            ddl.renaming(spare, name),
            ddl.opening(name),
            ddl.commenting(name, mark.bound(name, oid)),
        )
        free = _FREE.format(sql.Literal(oid), sql.Literal(name))
        marked = _MARKED.format(sql.Literal(oid), sql.Literal(mark.bound(name, oid).text()))
        return cls(
            spare,
            oid,
            name,
            mark,
            aside,
            take_place,
            sql.SQL("").join([free, marked]).as_bytes(server.connection),
        )

    def run(self, server: Server, last: HandOver | None = None) -> None:
        """Do it, in one transaction: under a new name and still with a spare's mark it would look
        free.

        Arguments: `last`, the hand-over that gave the name to what has it now, if this process did.
        Sessions in what is put aside are ended. Raises NotOwned, psycopg.Error;
        psycopg.errors.ObjectInUse if a session may not be ended, and InvalidCatalogName if the warm
        clone is gone, also if another database has its name.
        """
        aside = b""
        if self.aside and last is not None and _comes_free(server, last.is_free):
            aside = self._put_aside(server, last.oid, True)
        elif self.aside and (old := self._free(server, last)) is not None:
            aside = self._put_aside(server, old.oid, not old.problem(server.facts.system))
        commands = [aside, self.take_place] if aside else [self.take_place]
        try:
            try:
                _send(server, *commands)
            except psycopg.errors.ObjectInUse:
                # Somebody has come in since
                if not (aside and self._free(server, last, certainly=True)):
                    raise
                _send(server, *commands)
        except psycopg.errors.DivisionByZero:
            raise psycopg.errors.InvalidCatalogName(
                f'"{self.spare}" or "{self.name}" is another database now'
            ) from None

    def _put_aside(self, server: Server, old: int, marked: bool) -> bytes:
        """Return the command that gives the database `old`, which has the name, another one, and if
        it is `marked` still, a mark that goes with it. One whose mark a test has written over is
        dropped by nobody."""
        parts = [
            _SAME.format(sql.Literal(old), sql.Literal(self.name)),
            ddl.renaming(self.name, self.aside),
        ]
        if marked:
            parts.append(ddl.commenting(self.aside, self.mark.bound(self.aside, old)))
        return sql.SQL("; ").join(parts).as_bytes(server.connection)

    def _free(
        self, server: Server, last: HandOver | None, certainly: bool = False
    ) -> Database | None:
        """Free what has the name of sessions, letting nobody in if there are any or `certainly`;
        return it, if there is one."""
        # That we know better than its mark, which a test may have written over
        made = last.oid if last is not None else 0
        old = verify_owned(server, self.name, made)
        if old is None:
            return None
        is_free = _FREE.format(sql.Literal(old.oid), sql.Literal(self.name)).as_bytes(
            server.connection
        )
        if certainly or not _comes_free(server, is_free):
            ddl.roll_back_prepared(server, self.name)
            if stayed := ddl.close_to_others(server, self.name, made=made):
                _send(server, ddl.opening(self.name).as_bytes(server.connection))
                raise psycopg.errors.ObjectInUse(
                    f'database "{self.name}" is in use by {stayed}, who may not be ended'
                )
        return old


def _comes_free(server: Server, question: bytes) -> bool:
    """Ask whether a database is free, for a few milliseconds: a session ends a moment after its
    client has closed it."""
    return wait_until(
        lambda: bool(_send(server, question)[-1].get_value(0, 0) == b"t"), 0.005, 0.0001
    )


def _send(server: Server, *commands: bytes) -> list[Any]:
    """Send commands as one message, which is a transaction of its own, past psycopg's cursors: a
    test waits for it."""
    with server.connection.lock:
        return list(server.connection.wait(exchange(server.connection.pgconn, list(commands))))
