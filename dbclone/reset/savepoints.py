"""The sandbox's state machine, a value without a connection: what BEGIN, COMMIT, ROLLBACK and savepoints become.

One real transaction holds everything. Inside it a stack of savepoints stands for what the application believes to be there:

    level   a test, or the data of a class or module: undone when it ends
    block   a transaction block of the application: its COMMIT releases the savepoint, its ROLLBACK rolls back to it
    app     a savepoint that the application itself set inside its block
    guard   set before a statement that must not poison what is below it when it fails: one outside any block, or one of a block
            that is not the innermost, or behind which others have written
    over    what was a block or a savepoint in one, and ended while others were open above it; released when they have ended

Several connections of the application share the stack; each entry knows its owner. Methods return the commands to send, as
(command, savepoint name) pairs, and assume that they succeed. `failed` always is whether the real transaction is aborted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..errors import SandboxLimit
from ..statements import Control

Command = tuple[str, str]
PREFIX = "dbclone_"  # names of our savepoints begin so; an application's may not


@dataclass
class _Entry:
    kind: str
    owner: int
    name: str
    wrote: bool = False  # a block whose owner has written something
    buried: bool = False  # others have written something behind it, which undoing it would undo
    failed: bool = False  # a block that has failed, in which the server is brought on for others
    before: list[_Entry] = field(default_factory=list)  # what the stack was when a level was entered


@dataclass
class Savepoints:
    """The stack of savepoints; owners are numbers that the shells give to the application's connections."""

    entries: list[_Entry] = field(default_factory=list)
    fallen: dict[int, int] = field(default_factory=dict)  # owners whose failed block is undone already; how deep it was
    refusal: SandboxLimit | None = None  # of a rollback: from then on what anybody reads could be wrong

    def in_block(self, owner: int) -> bool:
        """Return whether `owner` believes to be inside a transaction block."""
        return self._block(owner) is not None or owner in self.fallen

    def has_failed(self, owner: int, failed: bool) -> bool:
        """Return whether the block of `owner` is one that has failed, whatever state the server is in."""
        index = self._block(owner)
        if index is None:
            return owner in self.fallen
        guarded = self.entries[-1].kind == "guard"
        mine = self.entries[-1].owner == owner if guarded else self._innermost() == index
        return self.entries[index].failed or (failed and mine)

    def knows_better(self, owner: int, failed: bool) -> bool:
        """Return whether the block of `owner` has failed, and the server would not say so."""
        says = failed and self.entries[-1].kind != "guard" and self._innermost() == self._block(owner)
        return self.has_failed(owner, failed) and not says

    def watches(self, owner: int) -> bool:
        """Return whether it matters if the next statement of `owner` writes. In the usual case, alone, it does once in a block."""
        top = self.entries[-1]
        if len(self.entries) <= 2 and top.owner == owner:
            return top.kind == "block" and not top.wrote
        return True

    def ready(self, owner: int) -> bool:
        """Return whether nothing need precede a statement of `owner`, for the usual case: it is alone, inside its block."""
        top = self.entries[-1]
        return top.owner == owner and top.kind == "block" and not (top.failed or top.buried or self.refusal)

    def wrote(self, owner: int) -> None:
        """Note that a statement of `owner` writes, so that nobody undoes it unawares. Only needed where the stack `watches`."""
        index = self._block(owner)
        if index is not None:
            self.entries[index].wrote = True
        self._bury(owner, 0 if index is None else index + 1, len(self.entries))

    def before_statement(self, owner: int, failed: bool) -> list[Command]:
        """Return what must precede an ordinary statement of `owner`."""
        self._sound()
        index = self._block(owner)
        if index is not None and self._innermost() == index and not self.entries[index].buried:
            return self._settle(failed)
        return [*self._make_way(failed), self._push("guard", owner)]

    def begin(self, owner: int, failed: bool) -> list[Command]:
        """Open a block for an owner that has none."""
        self._sound()
        return [*self._make_way(failed), self._push("block", owner)]

    def end(self, owner: int, failed: bool, keep: bool) -> list[Command]:
        """End the block of `owner`: keep its writes (COMMIT) unless it failed, or undo them (ROLLBACK).

        Raises SandboxLimit if another connection's block was opened inside it and is still open, and both have written:
        transactions that truly interleave cannot be savepoints of one another; and if what others have written since would be
        undone.
        """
        index = self._block(owner)
        if index is None:
            self.fallen.pop(owner, None)
            return []
        undo = not keep or self.has_failed(owner, failed)
        settling, block = self._settle(failed), self.entries[index]
        later = [e for e in self.entries[index + 1 :] if e.owner != owner and e.kind != "over"]
        if any(e.kind == "level" or (e.wrote and block.wrote) for e in later):
            self._refuse_interleaving(index, owner, undo)
        aborted = failed and not settling
        if (undo and block.wrote) or (aborted and not later):
            if block.buried:
                self._refuse(owner, True)
            if aborted and later:
                next(e for e in reversed(later) if e.kind == "block").failed = True
            self.entries[index:] = [replace(e, buried=False) for e in later]
            again = [("SAVEPOINT", e.name) for e in later]
            return [("ROLLBACK TO", block.name), ("RELEASE", block.name), *again, *([] if again else self._settle(False))]
        if block.wrote:
            self._bury(owner, 0, index)
        if not later:
            del self.entries[index:]
            return [*settling, ("RELEASE", block.name), *self._settle(False)]
        for entry in self.entries[index:]:
            entry.kind = "over" if entry.owner == owner else entry.kind
        return settling if aborted else [*settling, *self._settle(False)]

    def savepoint(self, owner: int, control: Control, failed: bool) -> list[Command]:
        """Follow SAVEPOINT, RELEASE and ROLLBACK TO of an owner inside its block; return them as commands.

        A name that the block does not know is sent as it is, for the server to refuse it as it would in production.
        """
        if control.name.startswith(PREFIX):
            raise SandboxLimit(
                f"the savepoint name {control.name!r} is reserved",
                f"Names that begin with {PREFIX} are dbclone's own.",
                "Choose another.",
            )
        index = self._block(owner)
        assert index is not None
        if control.verb != "rollback_to" and self.has_failed(owner, failed):
            return [(control.verb.upper(), control.name)]
        settling = self._settle(failed)
        if control.verb == "savepoint":
            return [*settling, self._push("app", owner, control.name)]
        undo = control.verb == "rollback_to"
        command = ("ROLLBACK TO" if undo else "RELEASE", control.name)
        known = [i for i in range(index + 1, len(self.entries)) if self.entries[i].name == control.name]
        at = next((i for i in reversed(known) if self.entries[i].owner == owner), None)
        if at is None:
            return [*settling, command]
        self._refuse_interleaving(at, owner, undo)
        if at != known[-1]:  # another one's savepoint of the same name is what the server would take it for
            self._refuse(owner, undo)
        del self.entries[at + undo :]
        if undo:
            self.entries[index].failed = False
        return [*settling, command]

    def enter_level(self, failed: bool) -> list[Command]:
        """Open a level: what follows is undone when it is left."""
        commands = self._make_way(failed)
        before = [replace(entry) for entry in self.entries]
        commands.append(self._push("level", 0))
        self.entries[-1].before = before
        return commands

    def leave_level(self, name: str) -> list[Command]:
        """Undo everything since the level `name` was entered, whatever is open in it; nothing if an outer level has undone it."""
        index = next((i for i, entry in enumerate(self.entries) if entry.kind == "level" and entry.name == name), None)
        if index is None:
            return []
        self.entries[:] = self.entries[index].before
        self.fallen = {owner: depth for owner, depth in self.fallen.items() if depth < index}
        self.refusal = None
        return [("ROLLBACK TO", name), ("RELEASE", name)]

    def clear(self) -> None:
        """Forget everything: the real transaction is gone."""
        self.entries.clear()
        self.fallen.clear()
        self.refusal = None

    @property
    def levels(self) -> int:
        """How many levels are open."""
        return sum(entry.kind == "level" for entry in self.entries)

    def _block(self, owner: int) -> int | None:
        return next((i for i, e in enumerate(self.entries) if e.kind == "block" and e.owner == owner), None)

    def _innermost(self) -> int | None:
        """Return where the innermost block is, if no level was entered inside it."""
        for index in range(len(self.entries) - 1, -1, -1):
            if self.entries[index].kind in ("block", "level"):
                return index if self.entries[index].kind == "block" else None
        return None

    def _push(self, kind: str, owner: int, name: str = "") -> Command:
        self.entries.append(_Entry(kind, owner, name or f"{PREFIX}{kind}_{len(self.entries)}"))
        return ("SAVEPOINT", self.entries[-1].name)

    def _settle(self, failed: bool) -> list[Command]:
        """Settle what is on top of the stack: undo what failed behind a guard, keep what succeeded; release what is over."""
        commands: list[Command] = []
        if self.entries and self.entries[-1].kind == "guard":
            guard = self.entries.pop()
            index = self._block(guard.owner)
            if failed and index is not None:
                self.entries[index].failed = True
            commands = [("ROLLBACK TO", guard.name), ("RELEASE", guard.name)] if failed else [("RELEASE", guard.name)]
        elif failed:
            return commands
        while self.entries and self.entries[-1].kind == "over":
            commands.append(("RELEASE", self.entries.pop().name))
        return commands

    def _make_way(self, failed: bool) -> list[Command]:
        """Make the server ready for somebody who is not in the innermost block: settle a guard, or put that block aside if it has
        failed. It can only be rolled back anyway, and is right away, as far as its owner's own savepoints do not hold it."""
        index = self._innermost()
        if not failed or index is None or self.entries[-1].kind == "guard":
            return self._settle(failed)
        block, top = self.entries[index], self.entries[-1]
        if top.buried:
            self._refuse(block.owner, True)
        if top is not block:
            block.failed = True
            return [("ROLLBACK TO", top.name)]
        self.entries.pop()
        self.fallen[block.owner] = index
        return [("ROLLBACK TO", block.name), ("RELEASE", block.name)]

    def _bury(self, owner: int, start: int, stop: int) -> None:
        for entry in self.entries[start:stop]:
            entry.buried = entry.buried or (entry.kind in ("block", "app") and entry.owner != owner)

    def _sound(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def _refuse_interleaving(self, index: int, owner: int, undo: bool) -> None:
        """Refuse to end what is at `index` if something of others would end with it."""
        above = [e for e in self.entries[index + 1 :] if e.kind not in ("guard", "over") and e.owner != owner]
        if above:
            later = "a test or fixture that began" if above[0].kind == "level" else "another connection's transaction that began"
            self._refuse(owner, undo, f"One ends while {later} later is still open.")
        if undo and self.entries[index].buried:
            self._refuse(owner, undo)

    def _refuse(self, owner: int, undo: bool, how: str = "") -> None:
        limit = SandboxLimit(
            "two transactions of the application interleave",
            f"{how or 'One is rolled back after another connection, in the middle of it, has written something that stays.'}"
            " Inside the one real transaction of a rollback they would have to be nested.",
            'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
        )
        if undo:
            self.refusal = limit
        raise limit
