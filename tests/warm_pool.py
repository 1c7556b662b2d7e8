"""What tests of the warm pool share: a worker, of this process or another, who swaps its database."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg

from dbclone.adapters import handles
from dbclone.databases import ddl
from dbclone.databases.naming import Mark, clone_name
from dbclone.databases.warm_pool import Pool
from dbclone.server.server import Server
from dbclone.settings import Settings, load
from dbclone.template.template import Template

from .conftest import Project

SCHEMA = """
CREATE TABLE item (id serial PRIMARY KEY, name text);
INSERT INTO item (name) SELECT 'item ' || n FROM generate_series(1, 100) n;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''7MB''', current_database()); END $$;
"""


class Worker:
    """One worker of one run, who holds the lease of a name and has a pool to swap what is called
    so."""

    def __init__(self, settings: Settings, limit: int, run: str = "r") -> None:
        self.server = Server.open(settings)
        self.template = Template.ensure(self.server, handles.load(settings)[0])
        self.name = clone_name(settings.project, run, "gw0")
        self.mark = Mark.make(
            "clone", settings.project, self.server.facts.system, run=run, worker="gw0"
        )
        assert self.server.leases.acquire(self.name)
        self.url = self.server.database(self.name).url
        self.pool = Pool(self.server, self.template.database, limit)

    def swap(self) -> int:
        """Swap, and return the oid of what has the name now."""
        assert self.pool.swap(self.name, self.mark) >= 0
        return self.oid

    @property
    def oid(self) -> int:
        found = ddl.find(self.server, self.name)
        assert found is not None
        assert (found.mark, found.problem(self.server.facts.system)) == (
            self.mark.bound(self.name, found.oid),
            "",
        )
        return found.oid

    def execute(self, statements: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statements.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def ready(self) -> int:
        return len(self.pool._ready)

    def pids(self) -> list[int]:
        """Return the process ids of the pool's sessions, if it has any."""
        return [pid for (pid,) in self.server.fetch(
            "SELECT pid FROM pg_stat_activity WHERE" " application_name LIKE %s", [f"dbclone pool %:{os.getpid()}"]
        )]  # fmt: skip

    def close(self) -> None:
        self.pool.close()
        with contextlib.suppress(psycopg.OperationalError):
            found = ddl.find(self.server, self.name)
            if found is not None:
                ddl.drop(self.server, found, force=True)
        self.server.close()


Hire = Callable[..., Worker]


@contextlib.contextmanager
def hiring(project: Project, options: Mapping[str, str]) -> Iterator[Hire]:
    """Give a function that gives a worker of the project, whose schema is one SQL file; all are
    gone at the end.

    The function's arguments: `limit`, of the pool; `run`; what else, settings.
    """
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(SCHEMA)
    with contextlib.ExitStack() as stack:

        def start(limit: int = 2, run: str = "r", **more: str) -> Worker:
            worker = Worker(load(project.folder, {**options, **more}, {}), limit, run)
            stack.callback(worker.close)
            return worker

        yield start
