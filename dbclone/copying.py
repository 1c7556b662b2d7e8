"""Copies of a template: made by CREATE DATABASE … TEMPLATE, few at a time; warm ones kept ready and claimed by a rename."""

from __future__ import annotations

import time

import psycopg

from . import databases
from .errors import TemplateError
from .marks import Database, Mark, spare_name
from .server import Server


def copy(server: Server, template: str, name: str, mark: Mark, open_to_all: bool = True) -> None:
    """Create database `name` from a template, few at a time, with the settings and grants that a copy lacks.

    Waits and tries again while somebody is connected to the template. Raises TemplateError, psycopg.Error.
    """
    settings = server.settings
    options: dict[str, str | bool] = {}
    if server.facts.major >= 15:
        options["STRATEGY"] = (
            settings.clone_strategy if settings.clone_strategy != "auto" else ("wal_log" if server.facts.durable else "file_copy")
        )
    if not open_to_all:
        options["ALLOW_CONNECTIONS"] = False
    pause, deadline = 0.05, time.monotonic() + 60
    with server.leases.slot("clone", settings.clone_limit, timeout=60):
        while True:
            try:
                databases.create(server, name, template, mark, options)
                break
            except psycopg.errors.ObjectInUse as error:
                if time.monotonic() > deadline:
                    raise TemplateError(
                        f'template "{template}" cannot be copied: somebody has been connected to it for 60 s',
                        str(error).strip(),
                        "End those sessions; a template admits nobody, so a superuser must have let them in.",
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
            except psycopg.errors.DiskFull as error:
                raise TemplateError(
                    f'no space is left on {server.where} to copy "{template}"', str(error).strip(), "Run: python -m dbclone prune"
                ) from None
    databases.carry_over(server, template, name)


def warm(server: Server, template: Database, count: int) -> int:
    """Make sure that `count` warm clones of a template wait for workers; return how many were made."""
    assert template.mark is not None
    values = {"fingerprint": template.mark.fingerprint, "template": str(template.oid)}
    mark = Mark.make("spare", server.settings.project, server.facts.system, **values)
    waiting = [d for d in databases.listed(server) if d.mark and (d.mark.kind, d.mark.template) == ("spare", mark.template)]
    for _ in range(missing := max(0, count - len(waiting))):
        name = spare_name(server.settings.project)
        server.leases.take(name)  # until it is whole, nobody may claim it, nor take it for a leftover
        try:
            copy(server, template.name, name, mark, open_to_all=False)
        finally:
            server.leases.give_up(name)
    return missing


def claim_warm(server: Server, template: Database, name: str, mark: Mark) -> bool:
    """Make a warm clone of `template` the database `name`, with its mark, if one waits; return whether one did.

    Nobody has been able to connect to it since it was copied. Its lease tells whether somebody is still making it, or drops it
    now; the rename decides between several who want it.
    """
    for spare in databases.listed(server):
        if spare.mark is None or spare.mark.kind != "spare" or spare.sessions or spare.problem(server.facts.system):
            continue
        if spare.mark.template != str(template.oid) or not server.leases.take(spare.name):
            continue
        try:
            if databases.claim(server, spare, name, mark):
                return True
        finally:
            server.leases.give_up(spare.name)
    return False
