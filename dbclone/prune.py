"""Dropping what nobody owns any more, and templates that have had their time."""

from __future__ import annotations

import logging

import psycopg

from . import databases
from .clock import monotonic
from .errors import NotOurs, ServerError
from .marks import Database, dead, lock_key, retired
from .server import Server

log = logging.getLogger("dbclone")


def prune(
    server: Server, current: str = "", everything: bool = False, dry_run: bool = False, budget: float = 60.0, sizes: bool = False
) -> list[tuple[Database, str]]:
    """Drop what has no living owner and templates that have had their time; return each database with the reason.

    Arguments: `current`, the template in use, which stays; `everything`, also all templates and warm clones that no living run
    uses, and what was kept of failed tests; `dry_run`, only say; `budget`, seconds after which the rest is left to the next run;
    `sizes`, ask for their bytes too.
    """
    settings, system = server.settings, server.facts.system
    known = databases.listed(server, sizes=sizes)
    if not known:
        return []
    leased = server.leases.held()
    chosen = list(dead(known, leased, system))
    if everything:
        rest = [
            d
            for d in known
            if d.mark and d.mark.kind in ("template", "spare", "scratch", "kept") and not d.problem(system) and not d.sessions
        ]
        chosen += [(d, "no living run uses it") for d in rest if lock_key(d.name) not in leased]
    else:
        chosen += retired(known, leased, system, settings.project, current, settings.retain_templates, settings.retain_days)
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
    """Drop a database whose owner is gone, within so many seconds; holding its lease meanwhile, so that nobody can come to life in
    it. Return whether it was dropped."""
    if not server.leases.take(database.name):
        return False
    try:
        databases.drop(server, database, patience=patience)
        log.info("dropped %s", database.name)
        return True
    except (psycopg.Error, NotOurs, ServerError) as error:
        log.info("%s stays: %s", database.name, str(error).strip().splitlines()[0])
        return False
    finally:
        server.leases.give_up(database.name)
