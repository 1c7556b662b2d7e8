"""A template: built once under a private name, sealed, published by one rename, found again by its
fingerprint.

Locks (a file lock for this machine, an advisory lock for the server) only save work. What decides
is the rename: the server lets exactly one builder have the name, and the name appears when
everything is done. So a template is complete or absent.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from dataclasses import dataclass
from typing import Any

import psycopg

from ..clone import roles
from ..clone.clone import Clone
from ..databases import ddl
from ..databases.naming import Database, free_template_name
from ..databases.prune import prune
from ..errors import Error, TemplateError
from ..process.clock import monotonic
from ..schema.manifest import Manifest
from ..schema.sources import Progress, Schema
from ..server.reconnect import reconnect, retry_once, translate_lost_connection
from ..server.roles import ensure_role
from ..server.server import Server
from .builder import LACKING, UNLOGGED, Builder, adoptable, flaws, full_manifest

log = logging.getLogger("dbclone")
# In a mark's manifest, and no input of the template
_FOUND = (UNLOGGED, LACKING, roles.ROW_SECURITY)


def silent(text: str) -> None:
    """Progress that nobody is told of."""


@dataclass
class Template:
    """A sealed database on a server.

    `built` says whether this call built it; `why`, what had changed since the previous template of
    the project (empty: nothing to compare with, or reused); `seconds`, how long `ensure` took;
    `notes`, what the build has left out of the schema's SQL files; `tidies`, what dead runs left is
    cleared away with each clone, because no run's controller does.
    """

    server: Server
    database: Database
    schema: Schema
    handle: Any = None
    built: bool = False
    why: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    tidies: bool = False

    @property
    def name(self) -> str:
        return self.database.name

    @classmethod
    def ensure(
        cls,
        server: Server,
        schema: Schema,
        handle: Any = None,
        rebuild: bool = False,
        progress: Progress = silent,
    ) -> Template:
        """Return the template of `schema`, built if it is not there.

        Arguments: `handle`, the application's database handle, bound to the database being built
        while the schema runs; `rebuild`, build it again even if it is there; `progress`, told each
        step of a build or wait. Raises BuildFailed, BuildTimeout, TemplateError, ServerError; then
        no template has been left behind.
        """
        with translate_lost_connection(server, "the template was looked for or built"):
            return cls._ensure(server, schema, handle, rebuild, progress)

    @classmethod
    def _ensure(
        cls, server: Server, schema: Schema, handle: Any, rebuild: bool, progress: Progress
    ) -> Template:
        started = monotonic()
        if server.settings.role:  # before the schema grants it something
            ensure_role(server, server.settings.role, login=True)
        manifest = full_manifest(server, schema)
        known = ddl.list_databases(server)
        name = free_template_name(server.settings.project, manifest.fingerprint, known)
        found = adoptable(server, known, name)
        if found is not None and not rebuild:
            ddl.touch(server, found)
            server.leases.acquire(found.name, shared=True, patience=5.0)
            roles.require(server)
            return cls(server, found, schema, handle, seconds=monotonic() - started)
        builder = Builder(server, schema, handle, manifest, name, progress)
        with builder.exclusively():
            known = ddl.list_databases(server)
            found = adoptable(server, known, name)
            built = found is None or rebuild
            why = _why(server, manifest, known, name) if built else ()
            if built:
                # One that is ours and was not good enough to adopt has the name still.
                found = builder.build(replaced=next((d for d in known if d.name == name), None))
        assert found is not None
        server.leases.acquire(found.name, shared=True, patience=5.0)
        roles.require(server)
        return cls(
            server, found, schema, handle, built, why, monotonic() - started, tuple(builder.notes)
        )

    def clone(self, owner: str = "main", run: str = "") -> Clone:
        """Return a clone for one owner of one run.

        Arguments: `owner`, the worker's name; `run`, what tells this run from others (default: a
        random one). If the template has been dropped since it was found, or has lost rows in a
        crash of the server, it is built again, once; if the connection to the server is lost, it is
        made anew, once. Raises TemplateError, ServerError, and what `ensure` raises.
        """
        run = run or secrets.token_hex(8)
        return retry_once(
            self.server,
            "a clone was made",
            lambda: self._clone(owner, run),
            lambda: reconnect(self.server),
        )

    def tidy(self) -> None:
        """Drop what dead runs left, and templates that have had their time, for ten seconds at
        most. Failing is a warning."""
        try:
            prune(self.server, self.name, budget=10)
        except (psycopg.Error, Error) as error:
            log.warning(
                "leftovers are left to the next run: %s", self.server.dsn.mask(str(error).strip())
            )

    def _clone(self, owner: str, run: str) -> Clone:
        if self.tidies:
            self.tidy()
        for again in (True, False):
            try:
                clone = Clone.create(
                    self.server, self.database, run, owner, self.handle, self.schema
                )
                try:
                    emptied = self._has_lost_rows(clone)
                    clone.admit(
                        roles.of_application(
                            self.server, self.database, clone.dsn, self.handle, clone.report.note
                        )
                    )
                except BaseException:
                    clone.drop()
                    raise
                if not emptied:
                    return clone
                clone.drop()
                problem = "lost the rows of its unlogged tables in a crash of the server"
            except psycopg.errors.InvalidCatalogName:
                problem = "has been dropped since it was found"
            if again:
                log.warning("template %s %s and is built again", self.name, problem)
                self.server.leases.release(self.name, shared=True)
                rebuild = problem.startswith("lost")
                self.database = Template.ensure(
                    self.server, self.schema, self.handle, rebuild=rebuild
                ).database
        raise TemplateError(
            f'template "{self.name}" {problem}, twice',
            "It was built again in between.",
            "Find out who drops templates, or why the server crashes, and run again.",
        )

    def _has_lost_rows(self, clone: Clone) -> bool:
        """Return whether unlogged tables that had rows when the template was built are empty: a
        crash of the server does that, and leaves the template looking complete. The statistics of
        the build tell which tables had rows."""
        if self.database.mark is None or UNLOGGED not in self.database.mark.manifest:
            return False
        with contextlib.closing(self.server.connect(clone.name, "check")) as connection:
            found = connection.execute(
                "SELECT FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'"
                " AND reltuples > 0 AND pg_relation_size(oid) = 0"
            ).fetchone()
        return found is not None

    def close(self) -> None:
        """End the connection to the server, and with it the leases of all clones made by it."""
        if self.tidies and not self.server.home.forked and not self.server.connection.closed:
            self.tidy()
        self.server.close()

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Template {self.name} {'built' if self.built else 'reused'}>"


def _why(server: Server, manifest: Manifest, known: list[Database], name: str) -> tuple[str, ...]:
    """Return what is wrong with the template that has the name, or else what differs from the
    newest other one of this project."""
    same = next((d for d in known if d.name == name), None)
    if same is not None and (wrong := flaws(server, same)):
        return tuple(wrong)
    others = [
        d.mark
        for d in known
        if d.mark and d.published and d.mark.project == server.settings.project and d.name != name
    ]
    if not others:
        return ()
    newest = max(others, key=lambda mark: mark.created)
    return tuple(
        manifest.explain(
            {
                k: v
                for k, v in newest.manifest.items()
                if k not in _FOUND and not k.startswith("extension ")
            }
        )
    )
