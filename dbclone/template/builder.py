"""One build of a template: under locks, in a private database, sealed, published by a rename."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from ..adapters import handles
from ..clone import roles
from ..databases import boundary, ddl
from ..databases.copying import disk_full
from ..databases.naming import Database, Mark, build_name
from ..errors import (
    BuildFailed,
    BuildTimeout,
    Error,
    NotOwned,
    ServerError,
    TemplateError,
    encodable,
    redacted,
    safe_str,
)
from ..process.clock import monotonic, wall
from ..process.file_lock import file_lock
from ..schema.manifest import Manifest, digest
from ..schema.sources import Progress, Schema
from ..server.private.account import cache_folder, private_folder
from ..server.server import Server
from ..server.shared_objects import describe_new, list_shared_objects
from . import emptiness, requirements

log = logging.getLogger("dbclone")
FORMAT = "1"  # of templates: a change makes all older ones another fingerprint's
UNLOGGED = "unlogged tables with rows"
LACKING = "roles that were not there"
#: How servers of several versions refuse an encoding or a locale.
_UNFIT = (
    psycopg.errors.UndefinedObject, psycopg.errors.WrongObjectType,
    psycopg.errors.InvalidParameterValue, psycopg.errors.FeatureNotSupported,
    psycopg.errors.InvalidObjectDefinition, psycopg.errors.SyntaxError, psycopg.DataError,
    UnicodeEncodeError,
)  # fmt: skip
# Follows the version of an extension if the schema asked for another than the server's default.
_DEFAULT = ", default "


def full_manifest(server: Server, schema: Schema) -> Manifest:
    """Return all inputs of a template: the schema's own and what else changes the result."""
    facts, settings = server.facts, server.settings
    return Manifest(
        {
            **schema.manifest(),
            "project": digest(settings.project.encode()),
            "PostgreSQL": str(facts.major),
            "encoding": encodable(settings.encoding) or facts.encoding,
            "locale": encodable(settings.locale) or f"{facts.collate}/{facts.ctype}",
            "role": facts.role,
            "template format": FORMAT,
        }
    )


def adoptable(server: Server, known: list[Database], name: str) -> Database | None:
    """Return the template called `name` if it is ours and complete. One that another role owns is
    never trusted."""
    found = next((d for d in known if d.name == name), None)
    if found is None:
        return None
    if found.problem(server.facts.system) or found.mark is None or found.mark.kind != "template":
        raise NotOwned(
            f'database "{name}" on {server.where} has the name of our template and is not one',
            found.problem(server.facts.system) or "It has no mark of a template.",
            "Set another name in [tool.dbclone]; whoever made that database knows what it is.",
        )
    return None if flaws(server, found) else found


def flaws(server: Server, found: Database) -> list[str]:
    """Return in words why a template of ours cannot be used any more, and is to be replaced."""
    assert found.mark is not None
    if found.limit == -2:
        return ["a DROP of the template was interrupted"]
    if not found.sealed:
        return ["the template was not sealed any more"]
    if flaw := collation_flaw(server, found):
        return [flaw]
    lacking = json.loads(found.mark.manifest.get(LACKING, "[]"))
    if lacking and (
        rows := server.fetch(
            "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1", [lacking]
        )
    ):
        return [f"role {name} was not there and is now" for (name,) in rows]
    recorded = {
        k.partition(" ")[2]: v for k, v in found.mark.manifest.items() if k.startswith("extension ")
    }
    if not recorded:
        return []
    rows = server.fetch(
        "SELECT name::text, default_version FROM pg_available_extensions WHERE name = ANY(%s)",
        [list(recorded)],
    )
    now = dict(rows)
    was = {name: version.partition(_DEFAULT)[2] or version for name, version in recorded.items()}
    return [
        f"extension {name} was {was[name]}, is {now.get(name) or 'gone'}"
        for name in was
        if was[name] != now.get(name)
    ]


def collation_flaw(server: Server, found: Database) -> str:
    """Return in words that the operating system sorts otherwise than when a database was made,
    which then cannot be copied; an empty string if it does not."""
    if server.facts.major < 15:  # nothing is recorded, nor refused
        return ""
    rows = server.fetch(
        "SELECT datcollversion, coalesce(pg_database_collation_actual_version(oid), 'unknown')"
        " FROM pg_database WHERE oid = %s AND datcollversion IS DISTINCT"
        " FROM pg_database_collation_actual_version(oid) AND datcollversion IS NOT NULL",
        [found.oid],
    )
    return "its collation had version {}, the system's has {}".format(*rows[0]) if rows else ""


@dataclass
class Builder:
    """One build: under locks, in a private database, published last."""

    server: Server
    schema: Schema
    handle: Any
    manifest: Manifest
    name: str
    progress: Progress
    notes: list[str] = field(default_factory=list)  # what the build has left out, for people

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the locks of this template; say who has them if that takes longer than a second."""
        patience = self.server.settings.build_timeout
        path = self._lock_path()
        with contextlib.ExitStack() as stack:
            started = monotonic()
            if path is not None:
                while True:
                    try:
                        stack.enter_context(file_lock(path, 1.0))
                        break
                    except TimeoutError:
                        self._still_waiting(monotonic() - started, patience)
                    except OSError:  # a disk that is full or read-only; as below
                        break
            while True:
                try:
                    stack.enter_context(self.server.leases.lock(f"build {self.name}", 1.0))
                    break
                except TimeoutError:
                    self._still_waiting(monotonic() - started, patience)
            yield

    def _still_waiting(self, waited: float, patience: float) -> None:
        holder = self.server.leases.holder(f"build {self.name}")
        if waited > patience:
            rows = self.server.fetch(
                "SELECT datname::text, left(query, 200) FROM pg_stat_activity"
                " WHERE datname ~ '^dbclone_.*_b_' AND usename = current_user LIMIT 3"
            )
            doing = "".join(f"\nIn {database} it runs: {query}" for database, query in rows)
            raise BuildTimeout(
                f'another process has been building template "{self.name}" for {waited:.0f} s',
                f"It is {holder}.{doing}",
                "Wait for it, end it, or raise build_timeout.",
            )
        self.progress(f"waiting for {holder} to build the template ({waited:.0f} s)")

    def _lock_path(self) -> Path | None:
        """Return the lock file for this machine, or None where there is no place for one: the
        server's lock does as well."""
        try:
            return (
                private_folder(cache_folder(self.server.settings) / "locks")
                / f"{digest(f'{self.server.facts.system} {self.name}'.encode())}.lock"
            )
        except ServerError:
            return None

    def build(self, replaced: Database | None) -> Database:
        """Build, seal and publish; return the database that has the name in the end, whoever made
        it.

        Arguments: `replaced`, the template that has the name until then. Raises BuildFailed,
        TemplateError, psycopg.Error.
        """
        if replaced is not None and replaced.sessions:
            raise self._occupied(f"There are {replaced.sessions} sessions in it.")
        requirements.check(self.server, self.schema)
        looked = boundary.prepare(self.server, self.schema)
        self.notes = looked.notes
        server, settings = self.server, self.server.settings
        name = build_name(settings.project)
        mark = Mark.make(
            "build", settings.project, server.facts.system, fingerprint=self.manifest.fingerprint
        )
        started = monotonic()
        server.leases.acquire(name)
        try:
            self.progress("creating an empty database")
            mark = ddl.create(server, name, "template0", mark, self._options())
            self._fill(name)
            manifest = {**self.manifest, **self._finish(name)}
            if looked.lacking:
                manifest[LACKING] = json.dumps(looked.lacking)
            final = replace(
                mark,
                kind="template",
                manifest=manifest,
                seconds=round(monotonic() - started, 3),
                used=wall(),
            )
            ddl.seal(server, name, final)
            self._publish(name, replaced)
        except _UNFIT as error:
            if ddl.find(server, name) is not None or not self._options():
                self._discard(name)
                raise
            raise settings.error(
                "locale" if settings.locale else "encoding",
                "the server cannot create a database like that",
                "Choose an encoding and a locale that the server has: SELECT collname, collencoding"
                " FROM pg_collation.",
                safe_str(error).strip(),
            ) from None
        except (psycopg.errors.DiskFull, psycopg.errors.InternalError_) as error:
            self._discard(name)
            raise disk_full(
                server, "template0", error, f'to build template "{self.name}"'
            ) from None
        except psycopg.errors.InsufficientPrivilege as error:
            self._discard(name)
            raise ddl.to_create(server, "template0", error) from error
        except BaseException:
            self._discard(name)
            raise
        finally:
            server.leases.release(name)
        log.info("built template %s in %.2f s", self.name, monotonic() - started)
        found = adoptable(server, ddl.list_databases(server, self.name), self.name)
        if found is None:
            raise TemplateError(
                f'template "{self.name}" was dropped as soon as it was built',
                "Somebody pruned it.",
                "Run again.",
            )
        return found

    def aside(self, name: str) -> None:
        """Build into the private database `name`, which is neither sealed nor published and stays
        open; the caller holds its lease and drops it. Raises what `build` raises."""
        boundary.prepare(self.server, self.schema)
        mark = Mark.make(
            "build",
            self.server.settings.project,
            self.server.facts.system,
            fingerprint=self.manifest.fingerprint,
        )
        ddl.create(self.server, name, "template0", mark, self._options())
        self._fill(name)
        # What a forgotten session has not committed is not in a template either
        ddl.close_to_others(self.server, name)
        self.server.connection.execute(ddl.opening(name))

    def _options(self) -> dict[str, str | bool]:
        """Return encoding and locale, said explicitly so that nothing of template1 matters."""
        settings = self.server.settings
        options: dict[str, str | bool] = (
            {"ENCODING": settings.encoding} if settings.encoding else {}
        )
        return {**options, "LOCALE": settings.locale} if settings.locale else options

    def _build(self, url: str) -> None:
        """Run the schema; say what appeared beside the database on a server of somebody's own,
        which no reading of a schema can exclude."""
        schema, shared = boundary.on_server(self.server, self.schema), self.server.embedded is None
        before = list_shared_objects(self.server) if shared else frozenset()
        schema.build(url, self.progress)
        if shared and (line := describe_new(self.server, before, "the build")):
            self.notes.append(line)
            self.progress(line)

    def _fill(self, name: str) -> None:
        dsn = self.server.database(name)
        try:
            with handles.bound_to(self.handle, dsn.url):
                self._build(dsn.url)
            with contextlib.closing(self.server.connect(name, "build")) as connection:
                emptiness.check(connection, self.schema)
            return
        except Exception as error:
            shown = redacted(error, dsn.mask)
        # Not while the original is being handled, which would become the context of what is shown.
        if isinstance(shown, Error):
            raise shown
        text = f"{type(shown).__name__}: {shown}"
        raise BuildFailed(
            f"building the template failed: {text.splitlines()[0]}",
            text,
            "Correct the schema; no template was left behind.",
        ) from shown

    def _finish(self, name: str) -> dict[str, str]:
        """End what the schema left open, then freeze and analyse everything, so that clones start
        with good plans and no vacuum debt; return what only the finished database tells: its
        extensions, whether unlogged tables have rows, and which tables have row-level security."""
        self.progress("vacuuming")
        with contextlib.closing(self.server.connect(name, "build")) as connection:
            # Before the VACUUM, which would wait for ever for a lock that a
            # forgotten session holds.
            if stayed := ddl.close_to_others(self.server, name, connection.info.backend_pid):
                shown = "\n".join(
                    f"Server process {pid} of {user or 'the server'} ({application or 'unnamed'})"
                    for pid, user, application in stayed
                )
                raise TemplateError(
                    "the schema left sessions open in the template, and they cannot be ended",
                    shown,
                    "Close connections at the end of the schema or seed."
                    " An extension with a background worker cannot be in a template.",
                )
            connection.execute("VACUUM (FREEZE, ANALYZE)")
            rows = connection.execute(
                "SELECT e.extname::text, e.extversion, a.default_version FROM pg_extension e"
                " LEFT JOIN pg_available_extensions a ON a.name = e.extname"
                " WHERE e.extname <> 'plpgsql'"
            ).fetchall()
            unlogged = connection.execute(
                "SELECT FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'"
                " AND reltuples > 0"
            ).fetchall()
            secured = roles.tables_with_row_security(connection)
        found = {UNLOGGED: str(len(unlogged))} if unlogged else {}
        found |= {roles.ROW_SECURITY: secured} if secured else {}
        return found | {
            f"extension {name}": was if was == default else f"{was}{_DEFAULT}{default}"
            for name, was, default in rows
        }

    def _publish(self, name: str, replaced: Database | None) -> None:
        """Give the finished database its name. A template that it replaces steps aside first."""
        if replaced is not None and replaced.limit == -2:
            ddl.drop(self.server, replaced)  # all that the server still allows with it
        elif replaced is not None and self._replace(name, replaced):
            return
        if not ddl.rename(self.server, name, self.name):
            self.progress("another process published the same template first")
            self._discard(name)

    def _replace(self, name: str, replaced: Database) -> bool:
        """Give the finished database the name of an older one, and drop that; return False if it
        has been dropped already."""
        server = self.server
        aside = build_name(server.settings.project)
        server.leases.acquire(aside)
        try:
            if not ddl.swap(server, replaced.name, aside, name):
                return False
            # Published all the same; what cannot be dropped now is pruned later
            with contextlib.suppress(psycopg.Error, ServerError):
                if (old := ddl.find(server, aside)) is not None:
                    ddl.drop(server, old)
            return True
        except psycopg.errors.ObjectInUse as error:
            raise self._occupied(str(error).strip()) from None
        finally:
            server.leases.release(aside)

    def _occupied(self, detail: str) -> TemplateError:
        return TemplateError(
            f'template "{self.name}" cannot be replaced: somebody is connected to it',
            detail,
            "End those sessions; a template admits nobody, so a superuser must have let them in.",
        )

    def _discard(self, name: str) -> None:
        with contextlib.suppress(Exception):
            if (database := ddl.find(self.server, name)) is not None:
                ddl.drop(self.server, database, force=True)
