"""What lies on the sandbox's stack of savepoints, and what is said where it cannot do what production would."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from ..errors import SandboxLimit

Command = tuple[str, str]
PREFIX = "dbclone_"  # names of our savepoints begin so; an application's may not
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "READ UNCOMMITTED")


@dataclass
class Entry:
    kind: str
    owner: int
    name: str
    written: bool = False  # a block in which something may have been written, or a guard after which something may have been
    used: bool = True  # not a guard that was set on suspicion
    covered: bool = False  # a block on which others may have committed something
    failed: bool = False  # a block that has been rolled back for the others, and waits for its owner to learn of it
    asked: bool = False  # a block in which a statement has run
    stale: bool = False  # a block that has asked before others committed something
    isolation: str = LEVELS[0]
    read_only: bool = False  # a block, and so for the server everything that lies on it

    def goes_on(self) -> None:
        """Raise what the server would in a block that has failed."""
        if self.failed:
            raise psycopg.errors.InFailedSqlTransaction(
                "current transaction is aborted, commands ignored until end of transaction block"
            )

    def thaws(self) -> None:
        """Raise SandboxLimit if its isolation level would hide from it what others have committed since it first asked."""
        if self.stale and self.isolation in LEVELS[1:3]:
            raise limit(
                f"others have committed since this {self.isolation} transaction began",
                "Its statements would see what its snapshot would hide from them.",
            )

    def modes(self, modes: str, deferred: str) -> list[Command]:
        """Return what makes a block read only or not. Its isolation level is remembered: the real transaction has one of its own,
        and nobody else writes while it is open."""
        self.isolation = next((level for level in LEVELS if level in modes), self.isolation)
        if "READ ONLY" in modes and not self.read_only:
            self.read_only = True
            return [("", "SET TRANSACTION READ ONLY")]
        if "READ WRITE" in modes and self.read_only:
            self.read_only = False
            return [("ROLLBACK TO", self.name), *([("", deferred)] if deferred else [])]
        return []

    def refuses(self, modes: str) -> bool:
        """Return whether the server would refuse these modes after a query."""
        wanted = next((level for level in LEVELS if level in modes), self.isolation)
        return wanted != self.isolation or ("READ WRITE" in modes and self.read_only)


def committed(entries: list[Entry]) -> None:
    """Remember of the blocks among these that something is committed on top of them."""
    for entry in entries:
        if entry.kind == "block":
            entry.covered, entry.stale = True, entry.stale or entry.asked


def named(entries: list[Entry], index: int, name: str) -> int | None:
    """Return where the last savepoint of that name is, in the block at `index`."""
    wanted = ("app", entries[index].owner, name)
    found = ((i, entries[i]) for i in range(len(entries) - 1, index, -1))
    return next((i for i, e in found if (e.kind, e.owner, e.name) == wanted), None)


def limit(what: str, detail: str) -> SandboxLimit:
    return SandboxLimit(
        f"two connections of the application meet: {what}",
        detail,
        'Commit first, or isolate the test with @pytest.mark.dbclone(reset="truncate") or "clone": there, all are real.',
    )


def written_by_another() -> SandboxLimit:
    return limit(
        "another connection has written in a transaction that is still open",
        "In production this statement would not see those rows, or would wait for them; in the one real transaction of a rollback"
        " it would see them.",
    )


def interleaved(what: str) -> SandboxLimit:
    return SandboxLimit(
        "two transactions of the application interleave",
        f"One goes on or ends while {what} is still open. In the one real transaction of a rollback they would have to be nested.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )


def reserved(name: str) -> SandboxLimit:
    """Return the error about a savepoint with a name like ours."""
    return SandboxLimit(
        f"the savepoint name {name!r} is reserved", f"Names that begin with {PREFIX} are dbclone's own.", "Choose another."
    )
