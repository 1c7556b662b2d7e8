"""A template: built once under a private name, sealed, published by one rename, found again by its fingerprint.

Locks (a file lock for this machine, an advisory lock for the server) only save work. What decides is the rename: the server lets
exactly one builder have the name, and the name appears when everything is done. So a template is complete or absent.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from . import databases
from .build import Builder, adoptable, full_manifest
from .clone import Clone
from .errors import TemplateError
from .marks import Database, template_name
from .schema import Manifest, Progress, Schema
from .server import Server


def _silent(text: str) -> None:
    pass


@dataclass
class Template:
    """A sealed database on a server.

    `built` says whether this call built it; `why`, what had changed since the previous template of the project (empty: nothing to
    compare with, or reused); `seconds`, how long `ensure` took.
    """

    server: Server
    database: Database
    handle: Any = None
    built: bool = False
    why: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.database.name

    @classmethod
    def ensure(
        cls, server: Server, schema: Schema, handle: Any = None, rebuild: bool = False, progress: Progress = _silent
    ) -> Template:
        """Return the template of `schema`, built if it is not there.

        Arguments: `handle`, the application's database handle, bound to the database being built while the schema runs; `rebuild`,
        build it again even if it is there; `progress`, told each step of a build or wait. Raises BuildFailed, BuildTimeout,
        TemplateError; then no template has been left behind.
        """
        started = time.perf_counter()
        manifest = full_manifest(server, schema)
        name = template_name(server.settings.project, manifest.fingerprint)
        known = databases.listed(server)
        found = adoptable(server, known, name)
        if found is not None and not rebuild:
            databases.touch(server, found)
            server.leases.take(found.name, shared=True)
            return cls(server, found, handle, seconds=time.perf_counter() - started)
        builder = Builder(server, schema, handle, manifest, name, progress)
        with builder.exclusively():
            known = databases.listed(server)
            found = adoptable(server, known, name)
            built = found is None or rebuild
            why = _why(server, manifest, known, name) if built else ()
            if built:
                found = builder.build(replaced=found)
        assert found is not None
        server.leases.take(found.name, shared=True)
        return cls(server, found, handle, built, why, time.perf_counter() - started)

    def clone(self, owner: str = "main", run: str = "") -> Clone:
        """Return a clone for one owner of one run.

        Arguments: `owner`, the worker's name; `run`, what tells this run from others (default: a random one). If the template has
        been dropped since it was found, TemplateError says so.
        """
        try:
            return Clone.create(self.server, self.database, run or secrets.token_hex(8), owner, self.handle)
        except psycopg.errors.InvalidCatalogName:
            raise TemplateError(
                f'template "{self.name}" has been dropped since it was found',
                "Somebody pruned it.",
                "Run again: it is built anew.",
            ) from None

    def close(self) -> None:
        """End the connection to the server, and with it the leases of all clones made through it."""
        self.server.close()

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Template {self.name} {'built' if self.built else 'reused'}>"


def _why(server: Server, manifest: Manifest, known: list[Database], name: str) -> tuple[str, ...]:
    """Return what differs from the newest other template of this project."""
    others = [
        d.mark
        for d in known
        if d.mark and d.mark.kind == "template" and d.mark.project == server.settings.project and d.name != name
    ]
    if not others:
        return ()
    newest = max(others, key=lambda mark: mark.created)
    return tuple(manifest.explain({k: v for k, v in newest.manifest.items() if not k.startswith("extension ")}))
