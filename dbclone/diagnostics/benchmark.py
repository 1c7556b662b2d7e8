"""What things cost on this very server: a round trip, a commit, a clone, a reset; and what
durability adds to a run.

Measured in scratch databases that are dropped again, also when the measuring is interrupted; of the
project's template only a copy is used. Each figure is the median of a few, because a doctor is in a
hurry.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import sql

from ..clone.clone import Clone
from ..databases import ddl
from ..databases.naming import Database, Mark, build_name
from ..process.clock import monotonic
from ..server.server import Server

_PINGS, _COMMITS, _RESETS = 50, 20, 5
_TABLES, _SAMPLE = 3, "dbclone_sample_"
TESTS, COMMITS = 200, 3  # what a run is taken to be: tests, and commits in each


@dataclass(frozen=True)
class Measures:
    """Seconds that each takes. `commit` as the server is set; `commit_undurable`, without waiting
    for the disk; `clone` and `drop` of a copy of `source`; resets by name, of a test that wrote
    nothing and of one that wrote three tables."""

    source: str
    ping: float
    commit: float
    commit_undurable: float
    clone: float
    drop: float
    rollback_nothing: float
    rollback_written: float
    truncate_nothing: float
    truncate_written: float
    foreign_tables: tuple[str, ...]

    @property
    def durability(self) -> float:
        """Seconds that waiting for the disk adds to a run of tests that commit: each one's commits,
        and that of its reset."""
        return max(0.0, self.commit - self.commit_undurable) * TESTS * (COMMITS + 1)

    def facts(self) -> dict[str, Any]:
        """Return it as values for JSON; all figures are seconds."""
        return {**asdict(self), "durability_per_run": self.durability}

    def lines(self) -> list[str]:
        """Return it for people."""

        def shown(seconds: float) -> str:
            return f"{seconds * 1000:.3g} ms"

        return [
            f"measured here: ping {shown(self.ping)}, commit {shown(self.commit)}"
            f" ({shown(self.commit_undurable)} without waiting)",
            f"clone of {self.source}: {shown(self.clone)} to make, {shown(self.drop)} to drop",
            f"rollback {shown(self.rollback_nothing)} with nothing written,"
            f" {shown(self.rollback_written)} after {_TABLES} inserts",
            f"truncate {shown(self.truncate_nothing)} with nothing written,"
            f" {shown(self.truncate_written)} after {_TABLES} inserts",
        ]


def measure(server: Server, template: Database | None, progress: Callable[[str], None]) -> Measures:
    """Measure everything. Arguments: `template`, the project's, to be copied, or else a sample.
    Raises what copying raises."""
    progress("measuring round trips")
    ping = _median(_PINGS, lambda: server.fetch("SELECT 1"))
    with _sample(server) as name:
        progress("measuring commits")
        with contextlib.closing(server.connect(name, "doctor")) as connection:
            commit = _commits(connection)
            connection.execute("SET synchronous_commit = off")
            undurable = _commits(connection)
        source = template or ddl.find(server, name)
        assert source is not None
        progress("measuring clones")
        started = monotonic()
        clone = Clone.create(server, source, secrets.token_hex(8), "doctor")
        try:
            created = monotonic() - started
            with contextlib.closing(server.connect(clone.name, "doctor")) as connection:
                foreign = connection.execute(
                    "SELECT ftrelid::regclass::text FROM pg_foreign_table ORDER BY 1"
                ).fetchall()
        finally:
            dropped = _timed(clone.drop)
        progress("measuring resets")
        resets = _resets(server, name)
    shown = source.name if template is not None else "an almost empty database"
    return Measures(
        shown,
        ping,
        commit,
        undurable,
        created,
        dropped,
        *resets,
        tuple(name for (name,) in foreign),
    )


@contextlib.contextmanager
def _sample(server: Server) -> Iterator[str]:
    """Yield the name of a scratch database with a few tables, under a lease; drop it at the end."""
    name = build_name(server.settings.project)
    with ddl.temporary_database(server, name):
        ddl.create(
            server,
            name,
            "template0",
            Mark.make("build", server.settings.project, server.facts.system),
        )
        with contextlib.closing(server.connect(name, "doctor")) as connection:
            for number in range(_TABLES):
                table = sql.Identifier(f"{_SAMPLE}{number}")
                connection.execute(
                    sql.SQL("CREATE TABLE public.{} (id serial PRIMARY KEY, text text)").format(
                        table
                    )
                )
        yield name


def _commits(connection: psycopg.Connection[Any]) -> float:
    return _median(
        _COMMITS,
        lambda: connection.execute("INSERT INTO public.dbclone_sample_0 (text) VALUES ('x')"),
    )


def _resets(server: Server, sample: str) -> tuple[float, float, float, float]:
    """Return what rollback and truncate cost, each for a test that wrote nothing and for one that
    wrote three tables."""
    source = ddl.find(server, sample)
    assert source is not None
    clone = Clone.create(server, source, secrets.token_hex(8), "doctor")
    try:
        return (
            _reset(clone, "rollback", False),
            _reset(clone, "rollback", True),
            _reset(clone, "truncate", False),
            _reset(clone, "truncate", True),
        )
    finally:
        clone.drop()


def _reset(clone: Clone, reset: str, write: bool) -> float:
    found = []
    for _ in range(_RESETS + 1):
        started = monotonic()
        with clone.isolated(reset) as test:
            before = monotonic() - started
            if write:
                for number in range(_TABLES):
                    test.execute(
                        sql.SQL("INSERT INTO public.{} (text) VALUES ('x')").format(
                            sql.Identifier(f"{_SAMPLE}{number}")
                        )
                    )
            else:
                test.execute("SELECT 1")
            started = monotonic()
        found.append(before + monotonic() - started)
    return statistics.median(found[1:])  # the first one learns what there is


def _median(times: int, act: Callable[[], object]) -> float:
    return statistics.median(_timed(act) for _ in range(times))


def _timed(act: Callable[[], object]) -> float:
    started = monotonic()
    act()
    return monotonic() - started


def compose(major: int) -> str:
    """Return the service for docker compose in which durability costs nothing."""
    # Where the image keeps its data: https://hub.docker.com/_/postgres, "PGDATA".
    data = "/var/lib/postgresql" if major >= 18 else "/var/lib/postgresql/data"
    return f"""services:
  postgres:
    image: postgres:{major}
    command: postgres -c fsync=off -c synchronous_commit=off -c full_page_writes=off
    tmpfs: {data}
    environment: {{POSTGRES_PASSWORD: postgres}}
    ports: ["5432:5432"]"""
