"""One case of a benchmark of resets: what is written, what undoes it, and how it is measured once."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.settings import RESETS
from dbclone.template.template import Template

from .goals import Goal
from .pings import Ping, Run, quiet
from .shop import Broken, Shop, Spread, inserts, reads, updates

Write = Callable[[Shop, psycopg.Connection[Any], bool], None]
TEST = "tests/test_shop.py::test_order"
FRESH = "fresh"  # instead of a reset: another clone
_WRITTEN: dict[Write, int] = {reads: 0, inserts: 3, updates: 1}  # rows
_STATEMENTS = {
    "truncate all": Shop.truncated,
    "truncate and seed": Shop.reseeded,
    "delete all": Shop.deleted,
    "recreate all": Shop.recreated,
}


@dataclass(frozen=True)
class Case:
    """What is measured.

    `reset`, one of dbclone's, or a plain statement as in _STATEMENTS, or FRESH; `write`, what the
    test does; `burst`, how many samples are taken in a row, after `warm` tests that are not
    counted; `alone`, nobody else may be connected at the reset, so that the test opens its
    connections itself and leaves none open; `patient`, wait before each sample until nothing goes
    on in the background; `busy`, somebody else commits something on the same server while the test
    runs.
    """

    name: str
    shop: Shop
    reset: str
    write: Write = inserts
    goals: tuple[Goal, ...] = ()
    burst: int = 20
    warm: int = 5
    alone: bool = False
    patient: bool = False
    busy: bool = False

    @property
    def written(self) -> int:
        """How many rows the test writes."""
        if self.reset == FRESH:
            return 0
        return self.write.count if isinstance(self.write, Spread) else _WRITTEN[self.write]

    def differing(self, connection: psycopg.Connection[Any]) -> int:
        """Return how many rows differ from the template where the test writes."""
        return self.shop.differing(
            connection, self.write.tables(self.shop) if isinstance(self.write, Spread) else ()
        )

    @property
    def refused(self) -> str:
        """Why it cannot be measured, or an empty string."""
        known = (*RESETS, *_STATEMENTS, FRESH)
        return "" if self.reset in known else f"dbclone has no reset {self.reset!r}"

    @contextlib.contextmanager
    def opened(self, server: Server, template: Template) -> Iterator[Contender]:
        """Yield what measures this case, with a clone of its own."""
        if self.reset == FRESH:
            ping = Ping(lambda: server.database(server.connection.info.dbname).url)
            yield Contender(self, ping, lambda run: _fresh(template), None)
            ping.close()
            return
        with template.clone() as clone:
            ping = Ping(lambda: clone.url)
            try:
                with contextlib.ExitStack() as stack:
                    kept = None
                    if (
                        not self.alone and self.reset != "rollback"
                    ):  # as an application keeps its connection
                        kept = stack.enter_context(
                            contextlib.closing(psycopg.connect(clone.url, autocommit=True))
                        )
                    act: Callable[[Run | None], float] = _Isolated(self, clone, kept, server)
                    if self.reset in _STATEMENTS:
                        assert kept is not None
                        act = _Statement(self, kept)
                    yield Contender(self, ping, act, clone)
            finally:
                ping.close()


@dataclass
class Contender:
    """A case that is ready to be measured. `act` runs one test and returns the seconds that its
    reset took; given a Run, it also notes how many rows differed from the template before and after
    the test wrote. `clone` is where, if it is always the same."""

    case: Case
    ping: Ping
    act: Callable[[Run | None], float]
    clone: Clone | None

    def burst(self, server: Server, run: Run) -> None:
        """Take some samples in a row, after tests that are not counted: they pay for what others
        have done in the meantime."""
        quiet(server)
        for number in range(self.case.warm):
            self.act(run if not (number or run.samples) else None)
        for _ in range(self.case.burst):
            if self.case.patient:
                quiet(server)
            run.pings.append(self.ping())
            if self.case.alone:
                self.ping.close()
            run.samples.append(self.act(None))

    def finish(self, run: Run) -> None:
        """Look once more whether the last reset worked."""
        self.act(run)
        if self.clone is not None:
            run.clones = self.clone.report.clones


@dataclass
class _Isolated:
    """A test isolated by dbclone: what is measured is entering and leaving, without what happens in
    between."""

    case: Case
    clone: Clone
    kept: psycopg.Connection[Any] | None
    server: Server

    def __call__(self, run: Run | None) -> float:
        block = self.clone.isolated(self.case.reset, TEST)
        started = time.perf_counter()
        isolation = block.__enter__()
        entering = time.perf_counter() - started
        try:
            connection = self.kept or isolation.connect(autocommit=True)
            _test(self.case, connection, self.case.reset != "rollback", run)
            if self.case.busy:
                self.server.fetch(
                    "SELECT pg_current_xact_id()"
                )  # takes a transaction number, and commits it
        except BaseException:
            if not block.__exit__(*sys.exc_info()):
                raise
        started = time.perf_counter()
        block.__exit__(None, None, None)
        return entering + time.perf_counter() - started


@dataclass
class _Statement:
    """A test after which a plain statement is run over the connection that it kept: what is
    measured is that statement."""

    case: Case
    kept: psycopg.Connection[Any]

    def __call__(self, run: Run | None) -> float:
        _test(self.case, self.kept, self.case.reset in ("recreate all", "truncate and seed"), run)
        statement: sql.Composed = _STATEMENTS[self.case.reset](self.case.shop)
        text = statement.as_bytes(self.kept)
        started = time.perf_counter()
        self.kept.execute(text, prepare=False)
        return time.perf_counter() - started


def _test(case: Case, connection: psycopg.Connection[Any], fresh: bool, run: Run | None) -> None:
    """Write what the case wants written, and look before and after it if there is a run to note it
    in."""
    if run is not None:
        run.looks.append(case.differing(connection))
    case.write(case.shop, connection, fresh)
    if run is not None:
        run.looks.append(case.differing(connection))
        if run.looks[-2:] != [0, case.written]:
            raise Broken(
                f"{case.name}: {run.looks[-2]} rows differed before the test wrote, and"
                f" {run.looks[-1]} after it"
            )


def _fresh(template: Template) -> float:
    """Make another clone, which is what is measured, and drop it."""
    started = time.perf_counter()
    clone = template.clone("fresh")
    taken = time.perf_counter() - started
    clone.drop()
    return taken
