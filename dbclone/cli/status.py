"""`python -m dbclone status`: the server, and every database that dbclone made there."""

from __future__ import annotations

import argparse
from typing import Any

from ..databases import ddl
from ..databases.naming import Database, Mark
from ..process.clock import wall
from ..server.locks import lock_key
from ..server.private.embedded import Embedded
from ..server.server import Server, external
from ..settings import Settings
from .progress import say


def _age(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "less than a minute"


def running(settings: Settings) -> Server | None:
    """Return a connection to the server; None if it is a private one that is not running."""
    if external(settings) is None and Embedded.locate(settings).cluster.pid() is None:
        return None
    return Server.open(settings)


def status(arguments: argparse.Namespace, settings: Settings) -> int:
    """Show the server, and every database that dbclone made there."""
    server = running(settings)
    if server is None:
        folder = Embedded.locate(settings).cluster.folder
        say(
            arguments,
            {"server": "private", "running": False, "folder": str(folder)},
            [f"the private server in {folder} is not running"],
        )
        return 0
    with server:
        known = ddl.list_databases(server, sizes=True)
        leased = server.leases.held()
        rows = [_facts(database, leased, server.facts.system) for database in known]
        lines = [
            f"PostgreSQL {server.version} at {server.where}, role {server.facts.role},"
            f" {'durable' if server.facts.durable else 'fsync off'}"
        ]
        for row in rows:
            used = f", used {_age(row['idle'])} ago" if row["kind"] == "template" else ""
            owner = f", {row['owner']}" if row["owner"] else ""
            life = {True: ", alive", False: ", owner gone", None: ""}[row["alive"]]
            lines.append(
                f"{row['kind']:9} {row['name']}  {row['bytes'] / 2**20:.1f} MB, {_age(row['age'])}"
                f" old{used}{owner}{life}{row['problem']}"
            )
            if arguments.manifest and row["manifest"]:
                lines += [
                    f"            {name}: {value}"
                    for name, value in sorted(row["manifest"].items())
                ]
        if not rows:
            lines.append("no databases of dbclone")
        say(
            arguments,
            {"server": server.where, "running": True, "version": server.version, "databases": rows},
            lines,
        )
    return 0


def _facts(database: Database, leased: set[int], system: str) -> dict[str, Any]:
    mark, now = database.mark, wall()
    problem = database.problem(system)
    kind = mark.kind if mark is not None else "unknown"
    return {
        "name": database.name, "kind": kind, "bytes": database.bytes, "sessions": database.sessions,
        "age": now - mark.created if mark else 0, "idle": now - mark.used if mark else 0,
        "owner": _owner(mark) if mark else "",
        "alive": lock_key(database.name) in leased if kind in ("clone", "build") else None,
        "problem": f", left alone: {problem}" if problem else "",
        "manifest": mark.manifest if mark else {},
    }  # fmt: skip


def _owner(mark: Mark) -> str:
    if mark.kind == "kept":
        return f"of {ascii(mark.label)[1:-1]}"
    return (
        f"worker {mark.worker} of run {mark.run[:8]} on {mark.host}:{mark.pid}"
        if mark.worker
        else ""
    )
