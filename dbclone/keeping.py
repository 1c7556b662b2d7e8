"""Clones that are kept: what a test left behind, in a database of its own, for a person to look at."""

from __future__ import annotations

import contextlib
import logging

import psycopg

from . import databases
from .errors import NotOurs, ServerError
from .marks import Mark, kept_name
from .prune import drop_dead
from .server import Server

log = logging.getLogger("dbclone")
KEPT = 5  # how many are kept of a project unless somebody says


def keep(server: Server, name: str, mark: Mark, label: str, count: int = KEPT) -> str:
    """Let a clone of our own go on as a kept database, named after `label`; return its name.

    One that was kept before for the same label is dropped, and of this project's others those beyond the newest `count`; one that
    somebody is looking at stays. Arguments: `mark`, the clone's. Raises psycopg.errors.ObjectInUse if somebody is in the clone
    whom we may not send away.
    """
    ours = Mark.make("kept", mark.project, mark.system, fingerprint=mark.fingerprint, label=label)
    kept = kept_name(mark.project, label)
    if (older := databases.find(server, kept)) is not None:
        with contextlib.suppress(psycopg.Error, NotOurs, ServerError):
            databases.drop(server, older)
    if not databases.keep(server, name, kept, ours):
        kept = kept_name(mark.project, label, again=True)
        databases.keep(server, name, kept, ours)
    log.info("kept %s for %s", kept, ascii(label))
    _bound(server, mark.project, max(1, count))
    return kept


def _bound(server: Server, project: str, count: int) -> None:
    """Drop what was kept of a project beyond the newest `count`."""
    found = [(d.mark.created, d) for d in databases.listed(server) if d.mark is not None and d.mark.kind == "kept"]
    mine = [d for _, d in sorted(found, key=lambda pair: pair[0], reverse=True) if d.mark is not None and d.mark.project == project]
    for database in mine[count:]:
        if not database.problem(server.facts.system) and not database.sessions:
            drop_dead(server, database)
