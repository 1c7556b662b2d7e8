"""Dropping what nobody owns any more, and templates that have had their time."""

from __future__ import annotations

import contextlib
import logging

import psycopg

from ..errors import NotOwned, ServerError
from ..process.clock import monotonic
from ..server.locks import lock_key
from ..server.server import Server
from . import ddl
from .naming import Database, Mark, find_expired, find_orphaned, kept_name

log = logging.getLogger("dbclone")


def prune(
    server: Server,
    current: str = "",
    everything: bool = False,
    dry_run: bool = False,
    budget: float = 60.0,
    sizes: bool = False,
) -> list[tuple[Database, str]]:
    """Drop what has no living owner and templates that have had their time; return each database
    with the reason.

    Arguments: `current`, the template in use, which stays; `everything`, also all templates and
    warm clones that no living run uses, and what was kept of failed tests; `dry_run`, only say;
    `budget`, seconds after which the rest is left to the next run; `sizes`, ask for their bytes
    too.
    """
    settings, system = server.settings, server.facts.system
    known = ddl.list_databases(server, sizes=sizes)
    if not known:
        return []
    leased = server.leases.held()
    chosen = list(find_orphaned(known, leased, system))
    if everything:
        rest = [
            d
            for d in known
            if d.mark
            and d.mark.kind in ("template", "spare", "scratch", "kept")
            and not d.problem(system)
            and not d.sessions
        ]
        chosen += [(d, "no living run uses it") for d in rest if lock_key(d.name) not in leased]
    else:
        chosen += find_expired(
            known,
            leased,
            system,
            settings.project,
            current,
            settings.retain_templates,
            settings.retain_days,
        )
    seen: set[int] = set()
    done = []
    deadline = monotonic() + budget
    for database, reason in chosen:
        if monotonic() > deadline:
            break
        if database.oid in seen:
            continue
        seen.add(database.oid)
        if not dry_run and not drop_dead(server, database, max(1.0, deadline - monotonic())):
            continue
        done.append((database, reason))
    return done


def drop_dead(server: Server, database: Database, patience: float = 10.0) -> bool:
    """Drop a database whose owner is gone, within so many seconds; holding its lease meanwhile, so
    that nobody can come to life in it. Return whether it was dropped."""
    if not server.leases.acquire(database.name):
        return False
    try:
        ddl.drop(server, database, patience=patience)
        log.info("dropped %s", database.name)
        return True
    except (psycopg.Error, NotOwned, ServerError) as error:
        log.info("%s stays: %s", database.name, str(error).strip().splitlines()[0])
        return False
    finally:
        server.leases.release(database.name)


log = logging.getLogger("dbclone")
KEPT = 5  # how many are kept of a project unless somebody says


def keep(server: Server, name: str, mark: Mark, label: str, count: int = KEPT) -> str:
    """Let a clone of our own go on as a kept database, named after `label`; return its name.

    One that was kept before for the same label is dropped, and of this project's others those
    beyond the newest `count`; one that somebody is looking at stays. Arguments: `mark`, the
    clone's. Raises psycopg.errors.ObjectInUse if somebody is in the clone whom we may not send
    away.
    """
    ours = Mark.make("kept", mark.project, mark.system, fingerprint=mark.fingerprint, label=label)
    kept = kept_name(mark.project, label)
    if (older := ddl.find(server, kept)) is not None:
        with contextlib.suppress(psycopg.Error, NotOwned, ServerError):
            ddl.drop(server, older)
    if not ddl.keep(server, name, kept, ours):
        kept = kept_name(mark.project, label, again=True)
        ddl.keep(server, name, kept, ours)
    log.info("kept %s for %s", kept, ascii(label))
    _bound(server, mark.project, max(1, count))
    return kept


def _bound(server: Server, project: str, count: int) -> None:
    """Drop what was kept of a project beyond the newest `count`."""
    found = [
        (d.mark.created, d)
        for d in ddl.list_databases(server)
        if d.mark is not None and d.mark.kind == "kept"
    ]
    mine = [
        d
        for _, d in sorted(found, key=lambda pair: pair[0], reverse=True)
        if d.mark is not None and d.mark.project == project
    ]
    for database in mine[count:]:
        if not database.problem(server.facts.system) and not database.sessions:
            drop_dead(server, database)
