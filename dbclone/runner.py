"""One run: the controller's half prepares, the worker's half clones. Read this first.

settings ─► server ─► template ─► clone ─► reset ─► your test
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg

from .adapters import handles
from .clone.clone import Clone
from .clone.roles import Role
from .databases.naming import clone_name
from .databases.prune import prune
from .errors import Error
from .schema.sources import Progress
from .server.dsn import Dsn, bound_environment, child_environment, with_libpq_defaults
from .server.private.embedded import Embedded
from .server.reconnect import reconnect, retry_once, translate_lost_connection
from .server.server import Server, external
from .server.shared_objects import describe_new, list_shared_objects
from .settings import Settings, load
from .template.template import Template, silent

log = logging.getLogger("dbclone")


def target(settings: Settings) -> str:
    """Return which server `settings` and libpq's variables lead to, in words and without a URL."""
    dsn = external(settings)
    if dsn is None:
        return "private server"
    if not settings.url:
        dsn = with_libpq_defaults(dsn)
    place = ", ".join(
        f"{key} {dsn.get(key)}" for key in ("host", "hostaddr", "port", "user") if dsn.get(key)
    )
    source = settings.source("url") if settings.url else "PG variables"
    return f"server at {place or 'the usual place'} (from {source})"


def remarks(settings: Settings) -> list[str]:
    """Return what a person should know of where the private server's data are, one line each;
    nothing if all is as usual."""
    try:
        return list(Embedded.locate(settings).notes) if external(settings) is None else []
    except Error:  # which is said when a test needs the server
        return []


@contextlib.contextmanager
def controller(
    settings: Settings,
    schema: Any = None,
    rebuild: bool = False,
    progress: Progress = silent,
    note: Progress = silent,
) -> Iterator[Template]:
    """Ensure server and template, clear away what dead runs left, and hold the server for the
    block.

    Arguments: `schema`, an object instead of the setting; `rebuild`, build the template even if it
    is there; `progress`, told the steps of a build; `note`, told what the build left out, and at
    the end what has appeared outside all databases. What died in this run is then cleared away too,
    or left to the next one. Raises any dbclone.Error.
    """
    parts, handle = handles.load(settings, schema)
    with Server.open(settings) as server:
        template = Template.ensure(server, parts, handle, rebuild, progress)
        with translate_lost_connection(server, "leftovers were dropped"):
            prune(server, template.name, budget=10)
        for line in template.notes:
            note(line)
        before = list_shared_objects(server)
        yield template
        if not server.home.forked:
            _tidy(server, template, before, note)


def _tidy(server: Server, template: Template, before: Any, note: Any) -> None:
    """Say what has appeared outside all databases, and clear away what died in a run that ends.
    Failing never fails the run."""

    def attempt() -> None:
        if line := describe_new(server, before):
            note(line)
        prune(server, template.name, budget=10)

    try:
        retry_once(server, "leftovers were dropped", attempt, lambda: reconnect(server))
    except (psycopg.Error, Error) as error:
        log.warning("leftovers are left to the next run: %s", str(error).strip())


@contextlib.contextmanager
def worker(
    settings: Settings, name: str, run: str, schema: Any = None, progress: Progress = silent
) -> Iterator[Clone]:
    """One worker's life; each of its tests is a `with clone.isolated(...)` inside.

    Arguments: `name`, the worker's, such as gw0; `run`, what tells this run from others; `schema`,
    `progress` as for `controller`.
    """
    parts, handle = handles.load(settings, schema)  # what
    with Server.open(settings) as server:  # where
        # Built once, found again
        template = Template.ensure(server, parts, handle, progress=progress)
        with template.clone(owner=name, run=run) as clone:
            _announce(settings, clone)
            yield clone


@contextlib.contextmanager
def single_process(
    settings: Settings,
    name: str,
    run: str,
    schema: Any = None,
    rebuild: bool = False,
    progress: Progress = silent,
    note: Progress = silent,
) -> Iterator[tuple[Template, Clone]]:
    """Both halves in one process, for a run without workers of its own: prepare, clone, and hold
    the clone for the block."""
    with (
        controller(settings, schema, rebuild, progress, note) as template,
        template.clone(owner=name, run=run) as clone,
    ):
        _announce(settings, clone)
        yield template, clone


def _announce(settings: Settings, clone: Clone) -> None:
    """Lead the application to the clone by its environment, now and if the clone moves."""
    user = clone.role.name if clone.role is not None else ""
    clone.on_move = lambda dsn: export_environment(environment(settings, dsn, user))
    clone.on_move(clone.app_dsn)
    if clone.warning:
        clone.report.note(clone.warning)


def export_environment(variables: Mapping[str, str]) -> None:
    """Set the variables that lead the application to its database, and take away those that libpq
    would follow instead: a service's database wins over PGDATABASE,
    an address over the host in a URL."""
    os.environ.pop("PGSERVICE", None)
    if "PGHOST" not in variables and not os.environ.get("PGHOST"):
        os.environ.pop("PGHOSTADDR", None)
    os.environ.update(variables)


def predicted_environment(settings: Settings, name: str, run: str) -> dict[str, str]:
    """Return the environment variables that will lead to a worker's clone, before the clone or even
    the server is there.

    Names are known early on purpose: an application that reads DATABASE_URL when it is imported
    must read the right one.
    """
    dsn = external(settings)
    base = dsn if dsn is not None else Embedded.locate(settings).dsn
    base = base.replace(dbname=clone_name(settings.project, run, name))
    return environment(settings, Role(settings.role).dsn(base) if settings.role else base)


def environment(settings: Settings, dsn: Dsn, user: str = "") -> dict[str, str]:
    """Return the variables that bind the application to a database: those of the setting `env`, and
    PGDATABASE where libpq's own variables name the server, with PGUSER if the application has a
    role of its own, `user`.

    Not before a clone is there: until then PGUSER says who builds.
    """
    found = _environment(settings, dsn)
    return {**found, "PGUSER": user} if user and "PGDATABASE" in found else found


def _environment(settings: Settings, dsn: Dsn) -> dict[str, str]:
    if settings.url or external(settings) is None:
        return bound_environment(settings.env, dsn, os.environ)
    if os.environ.get("PGSERVICE"):  # what it says, said in variables
        dsn = with_libpq_defaults(dsn)
        current = {name: value for name, value in os.environ.items() if name.startswith("PG")}
        found = child_environment(dsn, current)
        return {**found, **bound_environment(settings.env, dsn, os.environ)}
    return bound_environment([*settings.env, "PGDATABASE"], dsn, os.environ)


def prepare(
    schema: Any = None, *, rebuild: bool = False, progress: Progress = silent, **options: Any
) -> Template:
    """Return the template of this project, built if it is not there.

    Arguments: `schema`, a string as in the settings, or models, or a callable taking a URL
    (default: the setting); `rebuild`, build it even if it is there; `options`, any settings by
    name. What dead runs left is cleared away, now and with each clone. The template's `server`
    stays connected until it is closed, which also stops a private server that nobody else uses.
    Raises any dbclone.Error.
    """
    if isinstance(schema, str):
        options["schema"], schema = schema, None
    settings = load(options=options)
    for line in settings.leads_outside:
        log.warning("%s", line)
    parts, handle = handles.load(settings, schema)
    server = Server.open(settings)
    try:
        template = Template.ensure(server, parts, handle, rebuild, progress)
        template.tidies = True
        template.tidy()
    except BaseException:
        server.close()
        raise
    atexit.register(_close, template, os.getpid())
    return template


def _close(template: Template, pid: int) -> None:
    """Close at exit what nobody closed; never in a forked child, whose exit must not end its
    parent's session."""
    if os.getpid() == pid and not template.server.connection.closed:
        template.close()


def identity() -> tuple[str, str]:
    """Return (run, worker) of this process as pytest-xdist tells it, before pytest has read any
    configuration.

    A process started by a test of an xdist worker inherits the worker's variables without being the
    worker, so whoever took an identity says so in DBCLONE_RUN, and nobody takes it twice.
    """
    run, worker_name = (
        os.environ.get("PYTEST_XDIST_TESTRUNUID", ""),
        os.environ.get("PYTEST_XDIST_WORKER", ""),
    )
    claim = f"{run}/{worker_name}"
    if run and worker_name and os.environ.get("DBCLONE_RUN") != claim:
        os.environ["DBCLONE_RUN"] = claim
        return run, worker_name
    return secrets.token_hex(16), "main"
