"""The sandbox's state machine, a value without a connection: what BEGIN, COMMIT, ROLLBACK and savepoints become.

One real transaction holds everything. Inside it a stack of savepoints stands for what the application believes to be there:

    level   a test, or the data of a class or module: undone when it ends
    block   a transaction block of the application: its COMMIT releases the savepoint, its ROLLBACK rolls back to it
    app     a savepoint that the application itself set inside its block
    guard   set before a statement outside any block, so that its failure does not poison what follows

Several connections of the application share the stack; each entry knows its owner. Methods return the commands to send, as
(command, savepoint name) pairs, and assume that they succeed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import SandboxLimit
from ..statements import Control

Command = tuple[str, str]
PREFIX = "dbclone_"  # names of our savepoints begin so; an application's may not


@dataclass
class _Entry:
    kind: str
    owner: int
    name: str
    used: bool = False  # a guard behind which a statement has run


@dataclass
class Savepoints:
    """The stack of savepoints; owners are numbers that the shells give to the application's connections."""

    entries: list[_Entry] = field(default_factory=list)

    def in_block(self, owner: int) -> bool:
        """Return whether `owner` believes to be inside a transaction block."""
        return self._block(owner) is not None

    def _block(self, owner: int) -> int | None:
        for index in range(len(self.entries) - 1, -1, -1):
            entry = self.entries[index]
            if entry.kind == "block" and entry.owner == owner:
                return index
        return None

    def _push(self, kind: str, owner: int, name: str = "") -> Command:
        self.entries.append(_Entry(kind, owner, name or f"{PREFIX}{kind}_{len(self.entries)}"))
        return ("SAVEPOINT", self.entries[-1].name)

    def clear_guard(self, failed: bool) -> list[Command]:
        """Settle a guard on top of the stack: undo what failed behind it, keep what succeeded."""
        if not self.entries or self.entries[-1].kind != "guard":
            return []
        name = self.entries.pop().name
        return [("ROLLBACK TO", name), ("RELEASE", name)] if failed else [("RELEASE", name)]

    def before_statement(self, owner: int, failed: bool) -> list[Command]:
        """Return what must precede an ordinary statement of `owner`; `failed`, whether the real transaction is aborted."""
        if self.in_block(owner):
            return self.clear_guard(failed)
        top = self.entries[-1] if self.entries else None
        if top is None or top.kind != "guard":
            command = self._push("guard", owner)
            self.entries[-1].used = True
            return [command]
        if failed:
            return [("ROLLBACK TO", top.name)]
        if not top.used:
            top.used = True
            return []
        return [("RELEASE", top.name), ("SAVEPOINT", top.name)]

    def begin(self, owner: int, failed: bool) -> list[Command]:
        """Open a block for an owner that has none."""
        return [*self.clear_guard(failed), self._push("block", owner)]

    def end(self, owner: int, failed: bool, keep: bool) -> list[Command]:
        """End the block of `owner`: keep its writes (COMMIT) unless it failed, or undo them (ROLLBACK).

        Raises SandboxLimit if another connection's block was opened inside it and is still open: transactions that truly
        interleave cannot be savepoints of one another.
        """
        index = self._block(owner)
        if index is None:
            return []
        self._refuse_interleaving(index, owner)
        name = self.entries[index].name
        del self.entries[index:]
        return [("RELEASE", name)] if keep and not failed else [("ROLLBACK TO", name), ("RELEASE", name)]

    def _refuse_interleaving(self, index: int, owner: int) -> None:
        other = next((e for e in self.entries[index + 1 :] if e.kind == "level" or (e.kind == "block" and e.owner != owner)), None)
        if other is not None:
            what = (
                "a test or fixture that began later"
                if other.kind == "level"
                else "another connection's transaction that began later"
            )
            raise SandboxLimit(
                "two transactions of the application interleave",
                f"One ends while {what} is still open. Inside the one real transaction of a rollback they would have to be nested.",
                'Isolate this test with @pytest.mark.dbclone(reset="truncate").',
            )

    def savepoint(self, owner: int, control: Control) -> list[Command]:
        """Follow SAVEPOINT, RELEASE and ROLLBACK TO of an owner inside its block; return them as commands.

        A name that the block does not know is sent as it is, for the server to refuse it as it would in production.
        """
        index = self._block(owner)
        assert index is not None
        if control.name.startswith(PREFIX):
            raise SandboxLimit(
                f"the savepoint name {control.name!r} is reserved",
                f"Names that begin with {PREFIX} are dbclone's own.",
                "Choose another.",
            )
        if control.verb == "savepoint":
            return [self._push("app", owner, control.name)]
        at = next((i for i in range(len(self.entries) - 1, index, -1) if self.entries[i].name == control.name), None)
        if at is None:
            return [("RELEASE" if control.verb == "release" else "ROLLBACK TO", control.name)]
        self._refuse_interleaving(at, owner)
        del self.entries[at if control.verb == "release" else at + 1 :]
        return [("RELEASE" if control.verb == "release" else "ROLLBACK TO", control.name)]

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
