"""The sandbox's state machine, a value without a connection: what BEGIN, COMMIT, ROLLBACK and
savepoints become.

One real transaction holds everything. Inside it a stack of savepoints stands for what the
application believes to be there:

    level   a test, or the data of a class or module: undone when it ends
    block   a transaction block of the application: its COMMIT releases the savepoint, its ROLLBACK
            rolls back to it
    app     a savepoint that the application itself set inside its block
    guard   set before a statement outside any block, so that its failure does not poison what
            follows; kept for the next while there is nothing that the failure of the next could
            undo
    done    what nobody needs any more but cannot be released yet, because something else lies on it

Several connections of the application share the stack; each entry knows its owner. Blocks of
several connections may be open at once, as long as one at a time has written: while it is open,
nobody else runs a statement, who would see rows that production would not show. A block that gets
its turn after others lie on it, or after others have committed on top of it, is set anew on top of
the stack, which is the same to it as long as it has not written. So the block that writes is always
on top, and its rollback undoes its own writes and no others. Methods return the commands to send,
as (command, savepoint name) pairs, and assume that they succeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import psycopg

from ..errors import SandboxLimit
from ..sql.analysis import Control, analyze

Command = tuple[str, str]
PREFIX = "dbclone_"  # names of our savepoints begin so; an application's may not
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "READ UNCOMMITTED")


@dataclass
class StackEntry:
    kind: str
    owner: int
    name: str
    written: bool = False  # a block in which, or guard after which, something may have been written
    used: bool = True  # not a guard that was set on suspicion
    covered: bool = False  # a block on which others may have committed something
    failed: bool = False  # a block rolled back for the others, of which its owner has yet to learn
    asked: bool = False  # a block in which a statement has run
    stale: bool = False  # a block that has asked before others committed something
    isolation: str = LEVELS[0]
    read_only: bool = False  # a block, and so for the server everything that lies on it

    def check_not_failed(self) -> None:
        """Raise what the server would in a block that has failed."""
        if self.failed:
            raise psycopg.errors.InFailedSqlTransaction(
                "current transaction is aborted, commands ignored until end of transaction block"
            )

    def check_snapshot(self) -> None:
        """Raise SandboxLimit if its isolation level would hide from it what others have committed
        since it first asked."""
        if self.stale and self.isolation in LEVELS[1:3]:
            raise limit(
                f"others have committed since this {self.isolation} transaction began",
                "Its statements would see what its snapshot would hide from them.",
            )

    def modes(self, modes: str, deferred: str) -> list[Command]:
        """Return what makes a block read only or not. Its isolation level is remembered: the real
        transaction has one of its own, and nobody else writes while it is open."""
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


def note_commit(entries: list[StackEntry]) -> None:
    """Remember of the blocks among these that something is committed on top of them."""
    for entry in entries:
        if entry.kind == "block":
            entry.covered, entry.stale = True, entry.stale or entry.asked


def find_savepoint(entries: list[StackEntry], index: int, name: str) -> int | None:
    """Return where the last savepoint of that name is, in the block at `index`."""
    wanted = ("app", entries[index].owner, name)
    found = ((i, entries[i]) for i in range(len(entries) - 1, index, -1))
    return next((i for i, e in found if (e.kind, e.owner, e.name) == wanted), None)


def limit(what: str, detail: str) -> SandboxLimit:
    return SandboxLimit(
        f"two connections of the application meet: {what}",
        detail,
        'Commit first, or isolate the test with @pytest.mark.dbclone(reset="truncate") or'
        ' "clone": there, all are real.',
    )


def written_by_another() -> SandboxLimit:
    return limit(
        "another connection has written in a transaction that is still open",
        "In production this statement would not see those rows, or would wait for them; in the one"
        " real transaction of a rollback it would see them.",
    )


def interleaving_limit(what: str) -> SandboxLimit:
    return SandboxLimit(
        "two transactions of the application interleave",
        f"One goes on or ends while {what} is still open. In the one real transaction of a"
        f" rollback they would have to be nested.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )


def reserved_name(name: str) -> SandboxLimit:
    """Return the error about a savepoint with a name like ours."""
    return SandboxLimit(
        f"the savepoint name {name!r} is reserved",
        f"Names that begin with {PREFIX} are dbclone's own.",
        "Choose another.",
    )


CHECK = "SET CONSTRAINTS ALL IMMEDIATE"


@dataclass
class Savepoints:
    """The stack of savepoints; owners are numbers that the shells give to
    the application's connections."""

    entries: list[StackEntry] = field(default_factory=list)
    writers: frozenset[str] = frozenset()  # names of functions that may write
    # SQL that lets constraints wait for a COMMIT as they were declared; none if no constraint can
    deferred: str = ""
    # Whether the application was last seen to need a guard after a block or at a test's beginning
    foresees: bool = False
    # The owner of the last statement, whose failure it is if the real transaction is aborted
    last: int = 0

    def in_block(self, owner: int) -> bool:
        """Return whether `owner` believes to be inside a transaction block."""
        return self._block(owner) is not None

    def has_failed(self, owner: int, failed: bool) -> bool:
        """Return whether the block of `owner` is aborted;
        `failed`, whether the real transaction is."""
        index = self._block(owner)
        return index is not None and (self.entries[index].failed or (failed and self.last == owner))

    def writing(self, owner: int) -> bool:
        """Return whether `owner` has written in a block that is open."""
        index = self._block(owner)
        return index is not None and self.entries[index].written and not self.entries[index].failed

    def _block(self, owner: int) -> int | None:
        for index in range(len(self.entries) - 1, -1, -1):
            entry = self.entries[index]
            if entry.kind == "block" and entry.owner == owner:
                return index
        return None

    def _push(self, kind: str, owner: int, name: str = "") -> Command:
        self.entries.append(StackEntry(kind, owner, name or f"{PREFIX}{kind}_{len(self.entries)}"))
        return ("SAVEPOINT", self.entries[-1].name)

    def _turn(self, owner: int, failed: bool) -> list[Command]:
        """Settle what the last statement left, because it is the turn of `owner`: a guard on top,
        or somebody else's failure."""
        failure, self.last = failed and self.last != owner, owner
        if self.entries and self.entries[-1].kind == "guard":
            name = self.entries.pop().name
            return [("ROLLBACK TO", name), ("RELEASE", name)] if failed else [("RELEASE", name)]
        if not failure or not self.entries:
            return []
        index = max(
            (i for i, e in enumerate(self.entries) if e.kind in ("block", "level")), default=-1
        )
        block, top = self.entries[index], self.entries[-1]
        block.failed = block.kind == "block"
        block.written = block.written and top is not block
        return [("ROLLBACK TO", top.name)]

    def _alone(self, owner: int, failed: bool) -> None:
        """Raise SandboxLimit if somebody else has written in a block that is open; one that failed
        is about to be undone."""
        lost = self.entries[-1] if failed and self.last != owner and self.entries else None
        if any(
            e.kind == "block" and e.owner != owner and e.written and e is not lost
            for e in self.entries
        ):
            raise written_by_another()
        if any(e.read_only and e.owner != owner for e in self.entries):
            raise limit(
                "another connection's transaction is READ ONLY and still open",
                "It would be read only for this one too.",
            )

    def ready(self, owner: int) -> bool:
        """Return whether nothing need precede a statement of `owner`: the usual case, alone in a
        block that writes."""
        top = self.entries[-1]
        return (
            top.written
            and top.owner == owner
            and top.asked
            and not top.failed
            and self.last == owner
        )

    def before_statement(self, owner: int, failed: bool, text: str | None = None) -> list[Command]:
        """Return what must precede an ordinary statement of `owner`.

        Arguments: `failed`, whether the real transaction is aborted; `text`, of the statement, or
        None if it is not known. Raises SandboxLimit, and InFailedSqlTransaction in a block that has
        failed.
        """
        index = self._block(owner)
        if index is not None:
            return self._inside(index, owner, failed, text)
        top = self.entries[-1] if self.entries else None
        if any(entry.kind == "block" for entry in self.entries):
            self._alone(owner, failed)
            settled = self._turn(owner, failed)
            self._cover(text)
            return [*settled, self._push("guard", owner)]
        self.last = owner
        commands: list[Command] = []
        if top is None or top.kind != "guard":
            commands, self.foresees = [self._push("guard", owner)], True
        elif failed:
            commands = [("ROLLBACK TO", top.name)]
        elif top.written:
            commands = [("RELEASE", top.name), ("SAVEPOINT", top.name)]
        guard = self.entries[-1]
        guard.used, guard.written = True, not analyze(text).leaves_nothing(self.writers)
        return commands

    def _inside(self, index: int, owner: int, failed: bool, text: str | None) -> list[Command]:
        entry = self.entries[index]
        entry.check_snapshot()
        if analyze(text).empty:
            return []  # the server answers it whatever the transaction's state
        entry.check_not_failed()
        self._alone(owner, failed)
        writes = not analyze(text).reads_only(self.writers)
        self._within_level(index)
        commands = self._turn(owner, failed)
        commands += self._surface(index, owner)
        entry = self.entries[self._own(owner)]
        entry.asked, entry.written = (
            entry.asked or analyze(text).takes_snapshot,
            entry.written or writes,
        )
        return commands

    def _own(self, owner: int) -> int:
        index = self._block(owner)
        assert index is not None, "whoever asks has a block"
        return index

    def _surface(self, index: int, owner: int) -> list[Command]:
        """Set a block anew on top of the stack if others lie on it or have committed on it: what it
        undoes has to be its own."""
        entry, above = self.entries[index], self.entries[index + 1 :]
        below = any(e.kind not in ("app", "level") for e in above)  # other blocks, and done ones
        if not below and not entry.covered:
            return []
        if entry.written:  # then nobody has done anything since
            return []
        mine = [e for e in above if e.kind == "app" and e.owner == owner]
        savepoints = [e.name for e in mine]
        for old in (entry, *mine):
            old.kind = "done"
        command = self._push("block", owner)
        new = self.entries[-1]
        new.asked, new.isolation, new.stale, new.failed = (
            entry.asked,
            entry.isolation,
            entry.stale,
            entry.failed,
        )
        return [command, *(self._push("app", owner, name) for name in savepoints)]

    def _within_level(self, index: int) -> None:
        """Raise SandboxLimit if a block would have to be set anew inside a
        level that began after it."""
        above = self.entries[index + 1 :]
        move = self.entries[index].covered or any(e.kind in ("block", "done") for e in above)
        if move and any(e.kind == "level" for e in above):
            raise interleaving_limit("a test or fixture that began later")

    def _cover(self, text: str | None) -> None:
        """Remember of all open blocks that something is committed on top of them."""
        if not analyze(text).reads_only(self.writers):
            note_commit(self.entries)

    def begin(self, owner: int, failed: bool, modes: str = "") -> list[Command]:
        """Open a block for an owner that has none, with the transaction modes of its BEGIN."""
        self._alone(owner, failed)
        self.foresees = self.foresees and self.entries[-1].used
        commands = [*self._turn(owner, failed), self._push("block", owner)]
        # Outside blocks all are checked at once, because there each statement commits
        if self.deferred:
            commands.append(("", self.deferred))
        return commands + self.entries[-1].modes(modes, self.deferred)

    def modes(self, owner: int, failed: bool, modes: str) -> list[Command]:
        """Follow SET TRANSACTION of an owner inside its block. Raises ActiveSqlTransaction where
        the server would."""
        entry = self.entries[self._own(owner)]
        entry.check_not_failed()
        self._alone(owner, failed)
        if failed and self.last == owner:
            return [("", "SET TRANSACTION READ ONLY")]  # for the server to refuse
        if (
            entry.asked or any(e.kind == "app" and e.owner == owner for e in self.entries)
        ) and entry.refuses(modes):
            entry.failed = True
            raise psycopg.errors.ActiveSqlTransaction(
                "SET TRANSACTION must be called before any query"
            )
        return [*self._turn(owner, failed), *entry.modes(modes, self.deferred)]

    def modes_of(self, owner: int) -> str:
        """Return the modes of the block of `owner`, which AND CHAIN hands on to the next."""
        entry = self.entries[self._own(owner)]
        return entry.isolation + (" READ ONLY" if entry.read_only else "")

    def check(self, owner: int, failed: bool) -> list[Command]:
        """Return what checks, before the block of `owner` is kept, the constraints that wait for
        its COMMIT."""
        index = self._block(owner)
        if (
            not self.deferred
            or index is None
            or not self.entries[index].written
            or self.has_failed(owner, failed)
        ):
            return []
        commands = self._turn(owner, failed)
        if self.entries[index].read_only and all(
            e.kind == "app" for e in self.entries[index + 1 :]
        ):
            # What was made read only after a savepoint is not any more when the server, committing,
            # has released that.
            commands += [("RELEASE", self.entries.pop().name) for _ in self.entries[index + 1 :]]
        return [*commands, ("", CHECK)]

    def end(self, owner: int, failed: bool, keep: bool) -> list[Command]:
        """End the block of `owner`: keep its writes (COMMIT) unless it failed, or undo them
        (ROLLBACK).

        Raises SandboxLimit if a test or fixture that began inside it has not ended.
        """
        index = self._block(owner)
        if index is None:
            return self._turn(owner, failed) if failed else []
        mine = failed and self.last == owner
        if any(e.kind == "level" for e in self.entries[index + 1 :]) and (
            self.entries[index].written or mine
        ):
            raise interleaving_limit("a test or fixture that began later")
        commands = self._turn(owner, failed)
        entry, above = self.entries[index], self.entries[index + 1 :]
        if any(e.kind in ("block", "level") for e in above) or (
            entry.covered and not entry.written and not mine
        ):
            # It has not written since the others began, or it would have been set anew: there is
            # nothing to keep or to undo.
            for old in (entry, *(e for e in above if e.kind == "app" and e.owner == owner)):
                old.kind = "done"
            return commands + self._release_done()
        keep = keep and not mine and not entry.failed
        if keep and entry.written:
            note_commit(self.entries[:index])
        del self.entries[index:]
        undo: list[Command] = [] if keep else [("ROLLBACK TO", entry.name)]
        return [
            *commands,
            *undo,
            ("RELEASE", entry.name),
            *self._release_done(),
            *self._foresee(owner),
        ]

    def _foresee(self, owner: int) -> list[Command]:
        """Set a guard before it is needed, in a message that is sent anyway, if the application is
        wont to need one next."""
        if not self.foresees or self.entries[-1].kind != "level":
            return []
        commands, self.entries[-1].used = [self._push("guard", owner)], False
        return commands

    def _release_done(self) -> list[Command]:
        """Let go of what lies on top of the stack and is not needed any more."""
        name = ""
        while self.entries and self.entries[-1].kind == "done":
            name = self.entries.pop().name
        return [("RELEASE", name)] if name else []

    def savepoint(self, owner: int, failed: bool, control: Control) -> list[Command]:
        """Follow SAVEPOINT, RELEASE and ROLLBACK TO of an owner inside its block; return them as
        commands.

        A name that the block does not know is sent as it is, for the server to refuse it as it
        would in production.
        """
        index = self._own(owner)
        if control.name.startswith(PREFIX):
            raise reserved_name(control.name)
        verb = {"savepoint": "SAVEPOINT", "release": "RELEASE"}.get(control.verb, "ROLLBACK TO")
        if control.verb != "rollback_to":
            self.entries[index].check_not_failed()
            if failed and self.last == owner:
                return [(verb, control.name)]  # for the server to refuse
        self._alone(owner, failed)
        self._within_level(index)
        at = find_savepoint(self.entries, index, control.name)
        if (
            control.verb != "savepoint"
            and at is not None
            and any(e.kind == "level" for e in self.entries[at:])
        ):
            raise interleaving_limit("a test or fixture that began later")
        commands = self._turn(owner, failed)
        commands += self._surface(index, owner)
        index = self._own(owner)
        if control.verb == "savepoint":
            return [*commands, self._push("app", owner, control.name)]
        at = find_savepoint(self.entries, index, control.name)
        if at is not None:
            del self.entries[at if control.verb == "release" else at + 1 :]
            self.entries[self._own(owner)].failed = False
            return [*commands, (verb, control.name)]
        name = control.name
        # It is another connection's, or lies outside this block
        while any(e.name == name for e in self.entries):
            name += "_"
        return [*commands, (verb, name)]

    def enter_level(self, failed: bool) -> list[Command]:
        """Open a level: what follows is undone when it is left."""
        commands = [
            *self._turn(0, failed),
            self._push("level", 0),
            *([("", CHECK)] if self.deferred else []),
        ]
        return commands + self._foresee(0)

    def leave_level(self, name: str) -> list[Command]:
        """Undo everything since the level `name` was entered, whatever is open in it; nothing if an
        outer level has undone it."""
        index = next(
            (
                i
                for i, entry in enumerate(self.entries)
                if entry.kind == "level" and entry.name == name
            ),
            None,
        )
        if index is None:
            return []
        del self.entries[index:]
        return [("ROLLBACK TO", name), ("RELEASE", name)]

    @property
    def level(self) -> str:
        # The innermost
        return next(entry.name for entry in reversed(self.entries) if entry.kind == "level")

    @property
    def levels(self) -> int:
        """How many levels are open."""
        return sum(entry.kind == "level" for entry in self.entries)
