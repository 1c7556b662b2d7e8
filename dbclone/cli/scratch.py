"""Scratch clones: a copy of the template for a person to look around in."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from ..adapters import handles
from ..databases import ddl
from ..databases.copying import copy
from ..databases.naming import Mark, clone_name
from ..errors import NotOwned
from ..server.server import Server
from ..settings import Settings
from ..template.template import Template


def scratch(server: Server, settings: Settings, name: str = "") -> str:
    """Return the name of a database that dbclone made: `name` if it is one, or a new scratch clone,
    which stays for a day.

    Raises NotOwned if `name` is something else.
    """
    if name:
        found = ddl.find(server, name)
        problem = (
            found.problem(server.facts.system)
            if found is not None
            else "there is no such database, or its name is not one that dbclone gives"
        )
        if problem:
            raise NotOwned(
                f"{name!r} is not a database of dbclone: {problem}",
                f"Looked on {server.where}.",
                "List them with: python -m dbclone status",
            )
        return name
    schema, handle = handles.load(settings)
    template = Template.ensure(server, schema, handle)
    mark = Mark.make(
        "scratch",
        settings.project,
        server.facts.system,
        fingerprint=template.database.mark.fingerprint if template.database.mark else "",
    )
    made = clone_name(settings.project, secrets.token_hex(8), "scratch")
    server.leases.acquire(made)  # until it has its mark, it would pass for a leftover
    try:
        copy(server, template.name, made, mark)
    finally:
        server.leases.release(made)
    return made


@contextlib.contextmanager
def temporary_scratch(server: Server, settings: Settings, name: str = "") -> Iterator[str]:
    """Yield the name of a database as `scratch` returns it; drop it then if it was made here."""
    found = scratch(server, settings, name)
    try:
        yield found
    finally:
        if not name and (database := ddl.find(server, found)) is not None:
            ddl.drop(server, database, force=True)
