"""The sandbox's state machine, a value without a connection: what BEGIN, COMMIT, ROLLBACK and savepoints become.

One real transaction holds everything. Inside it a stack of savepoints stands for what the application believes to be there:

    level   a test, or the data of a class or module: undone when it ends
    block   a transaction block of the application: its COMMIT releases the savepoint, its ROLLBACK rolls back to it
    app     a savepoint that the application itself set inside its block
    guard   set before a statement outside any block, so that its failure does not poison what follows

A block in which nothing has been written yet floats: there is nothing to undo in it, so it is nobody's inner or outer transaction.
Its savepoint is set again, on top, before its next statement, once another connection has gone on meanwhile; and whoever ends
first, ends. Most transactions that live side by side are of that kind: an ORM's session that has read something is in one.

Several connections of the application share the stack; each entry knows its owner. Methods return the commands to send, as
(command, savepoint name) pairs, and assume that they succeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import SandboxLimit
from ..statements import Control

Command = tuple[str, str]
PREFIX = "dbclone_"  # names of our savepoints begin so; an application's may not


def _interleaving(how: str) -> SandboxLimit:
    return SandboxLimit(
        "two transactions of the application interleave",
        f"{how} Inside the one real transaction of a rollback they would have to be nested.",
        'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
    )


@dataclass(eq=False)
class _Entry:
    kind: str
    owner: int
    name: str
    said: str = ""  # the name that the application gave its savepoint: two connections may use the same
    used: bool = False  # a guard behind which a statement has run
    wrote: bool = True  # something that may have to be undone
    stale: bool = False  # of a floating block: others have written since its savepoint was set
    lost: bool = False  # of a floating block: its savepoint went with that of another
    crossed: bool = False  # of any other: others have committed behind its savepoint


@dataclass
class Savepoints:
    """The stack of savepoints; owners are numbers that the shells give to the application's connections."""

    entries: list[_Entry] = field(default_factory=list)
    count: int = 0  # of savepoints set so far, so that no two have one name
    active: int = 0  # who ran the last statement, and so whose it is that failed

    def in_block(self, owner: int) -> bool:
        """Return whether `owner` believes to be inside a transaction block."""
        return self._block(owner) is not None

    def _block(self, owner: int) -> int | None:
        for index in range(len(self.entries) - 1, -1, -1):
            entry = self.entries[index]
            if entry.kind == "block" and entry.owner == owner:
                return index
        return None

    def _push(self, kind: str, owner: int, said: str = "", wrote: bool = True) -> Command:
        self.count = self.count + 1 if self.entries else 1  # few names, because each is rendered once
        self.entries.append(_Entry(kind, owner, f"{PREFIX}{kind}_{self.count}", said, wrote=wrote))
        return ("SAVEPOINT", self.entries[-1].name)

    def clear_guard(self, failed: bool) -> list[Command]:
        """Settle a guard on top of the stack: undo what failed behind it, keep what succeeded."""
        if not self.entries or self.entries[-1].kind != "guard":
            return []
        guard = self.entries.pop()
        if failed:
            return [("ROLLBACK TO", guard.name), ("RELEASE", guard.name)]
        self._committed(guard)
        return [("RELEASE", guard.name)]

    def settled(self, owner: int, failed: bool) -> list[Command]:
        """Return what must precede a statement that does nothing, as a COMMIT outside any block."""
        commands = self.clear_guard(failed)
        self._go_on(owner, failed and not commands)
        return commands

    def _committed(self, done: _Entry) -> None:
        """Remember, where other blocks are open, that what is theirs to undo has something else in it now."""
        if done.wrote:
            self._cross(self.entries, done.owner)

    def _cross(self, entries: list[_Entry], owner: int) -> None:
        for entry in entries:
            if entry.kind in ("block", "app") and entry.owner != owner:
                entry.crossed, entry.stale = entry.wrote, True

    def before_statement(self, owner: int, failed: bool, reads: bool = False) -> list[Command]:
        """Return what must precede an ordinary statement of `owner`; `failed`, whether the real transaction is aborted; `reads`,
        whether the statement certainly writes nothing. Raises SandboxLimit where another connection's transaction failed."""
        top = self.entries[-1] if self.entries else None
        on_top = self.active == owner and top is not None and top.owner == owner and top.kind in ("block", "app")
        if top is not None and on_top and not (top.stale or top.lost):
            top.wrote = top.wrote or not reads  # the usual case, at no cost
            return []
        if self.in_block(owner):
            commands = self.clear_guard(failed)
            failed = failed and not commands
            self._go_on(owner, failed)
            entry = self.entries[self._block(owner) or 0]
            if not (entry.wrote or failed):
                commands += self._lift(entry)
                entry.wrote = not reads
            if not reads:
                self._cross(self.entries[self._block(owner) :], owner)
            return commands
        if top is None or top.kind != "guard":
            self._go_on(owner, failed)
            command = self._push("guard", owner, wrote=not reads)
            self.entries[-1].used = True
            return [command]
        if failed:
            top.owner, top.wrote = owner, not reads
            return [("ROLLBACK TO", top.name)]
        if not top.used:
            top.used, top.owner, top.wrote = True, owner, not reads
            return []
        self._committed(top)
        top.owner, top.wrote = owner, not reads
        return [("RELEASE", top.name), ("SAVEPOINT", top.name)]

    def _lift(self, entry: _Entry) -> list[Command]:
        """Set the savepoint of a floating block anew, on top, unless nothing has happened since it was set."""
        on_top = self.entries[-1] is entry
        if on_top and not (entry.stale or entry.lost):
            return []
        release = [("RELEASE", entry.name)] if on_top and not entry.lost else []
        self.entries = [other for other in self.entries if other is not entry]
        command = self._push("block", entry.owner)
        entry.name, entry.stale, entry.lost = self.entries[-1].name, False, False
        self.entries[-1] = entry
        return [*release, command]

    def begin(self, owner: int, failed: bool, wrote: bool = True) -> list[Command]:
        """Open a block for an owner that has none; `wrote`, whether the statement that follows at once may write."""
        return [*self.settled(owner, failed), self._push("block", owner, wrote=wrote)]

    def end(self, owner: int, failed: bool, keep: bool) -> list[Command]:
        """End the block of `owner`: keep its writes (COMMIT) unless it failed, or undo them (ROLLBACK).

        Raises SandboxLimit if what another connection has written and not committed would be kept or undone with it, or if it
        would be undone although it has been committed: such transactions cannot be savepoints of one another.
        """
        if self._block(owner) is None:
            return []
        commands = self.clear_guard(failed)
        failed = failed and not commands
        index = self._block(owner) or 0
        entry = self.entries[index]
        if not entry.wrote and (index < len(self.entries) - 1 or entry.lost):
            del self.entries[index]  # what is left of it on the server undoes nothing, and goes with what is around it
            return commands
        self._go_on(owner, failed)
        undo = failed or not (keep or (entry.stale and not entry.wrote))
        if undo and entry.crossed:
            raise _interleaving("One is rolled back after another connection's transaction, which began later, was committed.")
        self._cut(index, owner)
        if not undo:
            self._committed(entry)
            return [*commands, ("RELEASE", entry.name)]
        return [*commands, ("ROLLBACK TO", entry.name), ("RELEASE", entry.name)]

    def _cut(self, index: int, owner: int) -> None:
        """Take away all entries from `index` on. Floating blocks of others stay, without their savepoints."""
        floating = [e for e in self.entries[index:] if e.kind == "block" and e.owner != owner and not e.wrote]
        self._refuse_interleaving([e for e in self.entries[index:] if e not in floating], owner)
        for entry in floating:
            entry.lost = True
        self.entries[index:] = floating

    def _refuse_interleaving(self, cut: list[_Entry], owner: int) -> None:
        other = next((e for e in cut if e.kind == "level" or (e.kind in ("block", "app") and e.owner != owner)), None)
        if other is not None:
            what = (
                "a test or fixture that began later"
                if other.kind == "level"
                else "another connection's transaction that began later"
            )
            raise _interleaving(f"One ends while {what} is still open.")

    def _go_on(self, owner: int, failed: bool) -> None:
        """Note that `owner` is about to run a statement. Raises SandboxLimit if the real transaction is aborted by a statement that
        is not its own, or one whose failure reaches further than its own block."""
        top = self.entries[-1] if self.entries else None
        if failed and top is not None and top.kind in ("block", "app") and not (top.owner == owner == self.active):
            raise _interleaving("One has failed and was not rolled back yet, and another connection goes on.")
        self.active = owner

    def savepoint(self, owner: int, control: Control, failed: bool = False) -> list[Command]:
        """Follow SAVEPOINT, RELEASE and ROLLBACK TO of an owner inside its block; return them as commands.

        A name that the block does not know is sent as it is, for the server to refuse it as it would in production.
        """
        if control.name.startswith(PREFIX):
            raise SandboxLimit(
                f"the savepoint name {control.name!r} is reserved",
                f"Names that begin with {PREFIX} are dbclone's own.",
                "Choose another.",
            )
        commands = self.before_statement(owner, failed)
        index = self._block(owner)
        assert index is not None
        if control.verb == "savepoint":
            return [*commands, self._push("app", owner, control.name)]
        verb = "RELEASE" if control.verb == "release" else "ROLLBACK TO"
        own = [
            i for i, e in enumerate(self.entries) if i > index and e.owner == owner and e.kind == "app" and e.said == control.name
        ]
        if not own:
            return [*commands, (verb, control.name)]
        at = self.entries[own[-1]]
        if control.verb == "rollback_to" and at.crossed:
            raise _interleaving("A savepoint of one is rolled back to after another connection's transaction was committed.")
        self._cut(own[-1] if control.verb == "release" else own[-1] + 1, owner)
        return [*commands, (verb, at.name)]

    def enter_level(self, failed: bool) -> list[Command]:
        """Open a level: what follows is undone when it is left."""
        return [*self.clear_guard(failed), self._push("level", 0)]

    def leave_level(self, name: str) -> list[Command]:
        """Undo everything since the level `name` was entered, whatever is open in it; nothing if an outer level has undone it."""
        index = next((i for i, entry in enumerate(self.entries) if entry.kind == "level" and entry.name == name), None)
        if index is None:
            return []
        del self.entries[index:]
        return [("ROLLBACK TO", name), ("RELEASE", name)]

    @property
    def levels(self) -> int:
        """How many levels are open."""
        return sum(entry.kind == "level" for entry in self.entries)
