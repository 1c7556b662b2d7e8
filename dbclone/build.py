"""One build of a template: under locks, in a private database, sealed, and published by a rename."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from . import adapters, databases
from .embedded.account import cache_folder, private_folder
from .errors import BuildFailed, BuildTimeout, Error, NotOurs, ServerError, TemplateError
from .marks import Database, Mark, build_name
from .schema import Manifest, Progress, Schema, digest
from .server import Server

log = logging.getLogger("dbclone")
FORMAT = "1"  # of templates: a change makes all older ones another fingerprint's


def full_manifest(server: Server, schema: Schema) -> Manifest:
    """Return all inputs of a template: the schema's own and what else changes the result."""
    facts, settings = server.facts, server.settings
    return Manifest(
        {
            **schema.manifest(),
            "project": digest(settings.project.encode()),
            "PostgreSQL": str(facts.major),
            "encoding": settings.encoding or facts.encoding,
            "locale": settings.locale or f"{facts.collate}/{facts.ctype}",
            "role": facts.role,
            "template format": FORMAT,
        }
    )


def adoptable(server: Server, known: list[Database], name: str) -> Database | None:
    """Return the template called `name` if it is ours and complete. One that another role owns is never trusted."""
    found = next((d for d in known if d.name == name), None)
    if found is None or found.limit == -2:
        return None
    if found.problem(server.facts.system) or found.mark is None or found.mark.kind != "template" or not found.sealed:
        raise NotOurs(
            f'database "{name}" on {server.where} has the name of our template and is not one',
            found.problem(server.facts.system) or "It is not sealed, or its mark is of another kind.",
            "Drop it by hand if you know what it is, or set another name in [tool.dbclone].",
        )
    return found if _extensions_current(server, found) else None


def _extensions_current(server: Server, found: Database) -> bool:
    """Return whether the extensions in a template still have the versions that the server would install now."""
    assert found.mark is not None
    wanted = {k.partition(" ")[2]: v for k, v in found.mark.manifest.items() if k.startswith("extension ")}
    if not wanted:
        return True
    rows = server.fetch("SELECT name, default_version FROM pg_available_extensions WHERE name = ANY(%s)", [list(wanted)])
    return dict(rows) == wanted


@dataclass
class Builder:
    """One build: under locks, in a private database, published last."""

    server: Server
    schema: Schema
    handle: Any
    manifest: Manifest
    name: str
    progress: Progress

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the locks of this template; say who holds them if that takes longer than a second."""
        from filelock import FileLock, Timeout

        patience = self.server.settings.build_timeout
        path = self._lock_path()
        with contextlib.ExitStack() as stack:
            started = time.monotonic()
            if path is not None:
                lock = FileLock(path, mode=0o600)
                while True:
                    try:
                        stack.enter_context(lock.acquire(timeout=1.0, poll_interval=0.02))
                        break
                    except Timeout:
                        self._still_waiting(time.monotonic() - started, patience)
            while True:
                try:
                    stack.enter_context(self.server.leases.lock(f"build {self.name}", 1.0))
                    break
                except TimeoutError:
                    self._still_waiting(time.monotonic() - started, patience)
            yield

    def _still_waiting(self, waited: float, patience: float) -> None:
        holder = self.server.leases.holder(f"build {self.name}")
        if waited > patience:
            rows = self.server.fetch(
                "SELECT datname::text, left(query, 200) FROM pg_stat_activity WHERE datname ~ '^dbclone_.*_b_' AND usename = current_user LIMIT 3"
            )
            doing = "".join(f"\nIn {database} it runs: {query}" for database, query in rows)
            raise BuildTimeout(
                f'another process has been building template "{self.name}" for {waited:.0f} s',
                f"It is {holder}.{doing}",
                "Wait for it, end it, or raise build_timeout.",
            )
        self.progress(f"waiting for {holder} to build the template ({waited:.0f} s)")

    def _lock_path(self) -> Path | None:
        """Return the lock file for this machine, or None where there is no place for one: the server's lock does as well."""
        try:
            return (
                private_folder(cache_folder(self.server.settings) / "locks")
                / f"{digest(f'{self.server.facts.system} {self.name}'.encode())}.lock"
            )
        except ServerError:
            return None

    def build(self, replaced: Database | None) -> Database:
        """Build, seal and publish; return the database that has the name in the end, whoever made it."""
        server, settings = self.server, self.server.settings
        name = build_name(settings.project)
        mark = Mark.make("build", settings.project, server.facts.system, fingerprint=self.manifest.fingerprint)
        started = time.perf_counter()
        server.leases.take(name)
        try:
            self.progress("creating an empty database")
            databases.create(server, name, "template0", mark, self._options())
            self._fill(name)
            extensions = self._finish(name)
            if stayed := databases.close_to_others(server, name):
                shown = "\n".join(
                    f"Server process {pid} of {user or 'the server'} ({application or 'unnamed'})"
                    for pid, user, application in stayed
                )
                raise TemplateError(
                    "the schema left sessions open in the template, and they cannot be ended",
                    shown,
                    "Close connections at the end of the schema or seed; an extension with a background worker cannot be in a template.",
                )
            manifest = {**self.manifest, **extensions}
            final = replace(
                mark, kind="template", manifest=manifest, seconds=round(time.perf_counter() - started, 3), used=time.time()
            )
            databases.seal(server, name, final)
            self._publish(name, replaced)
        except psycopg.errors.InsufficientPrivilege as error:
            self._discard(name)
            raise TemplateError(
                "a privilege is missing to build the template", str(error).strip(), "Grant it to the role in url."
            ) from error
        except BaseException:
            self._discard(name)
            raise
        finally:
            server.leases.give_up(name)
        log.info("built template %s in %.2f s", self.name, time.perf_counter() - started)
        found = adoptable(server, databases.listed(server, self.name), self.name)
        if found is None:
            raise TemplateError(f'template "{self.name}" was dropped as soon as it was built', "Somebody pruned it.", "Run again.")
        return found

    def _options(self) -> dict[str, str | bool]:
        """Return encoding and locale, said explicitly so that nothing of template1 matters."""
        settings = self.server.settings
        options: dict[str, str | bool] = {"ENCODING": settings.encoding} if settings.encoding else {}
        return {**options, "LOCALE": settings.locale} if settings.locale else options

    def _fill(self, name: str) -> None:
        url = self.server.database(name).url
        try:
            with adapters.bound(self.handle, url):
                self.schema.build(url, self.progress)
        except Error:
            raise
        except Exception as error:
            password = self.server.dsn.get("password")
            text = f"{type(error).__name__}: {error}".replace(password or chr(0), "***")
            raise BuildFailed(
                f"building the template failed: {text.splitlines()[0]}", text, "Correct the schema; no template was left behind."
            ) from error

    def _finish(self, name: str) -> dict[str, str]:
        """Freeze and analyse everything, so that clones start with good plans and no vacuum debt; return the extensions."""
        self.progress("vacuuming")
        with contextlib.closing(self.server.connect(name, "build")) as connection:
            connection.execute("VACUUM (FREEZE, ANALYZE)")
            rows = connection.execute("SELECT extname::text, extversion FROM pg_extension WHERE extname <> 'plpgsql'").fetchall()
        return {f"extension {extension}": version for extension, version in rows}

    def _publish(self, name: str, replaced: Database | None) -> None:
        """Give the finished database its name. A template that is being replaced steps aside first."""
        if replaced is not None:
            aside = build_name(self.server.settings.project)
            databases.swap(self.server, replaced.name, aside, name)
            if (old := databases.find(self.server, aside)) is not None:
                databases.drop(self.server, old)
            return
        if not databases.rename(self.server, name, self.name):
            self.progress("another process published the same template first")
            self._discard(name)

    def _discard(self, name: str) -> None:
        with contextlib.suppress(Exception):
            if (database := databases.find(self.server, name)) is not None:
                databases.drop(self.server, database, force=True)
