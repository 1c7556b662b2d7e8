"""What every way to undo a test has in common: a strategy is begun before the test and ended after
it, and says what it did."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import SandboxLimit
from ..process.clock import monotonic
from .transactions import Moment, Verdict

if TYPE_CHECKING:
    import psycopg

    from ..sandbox.session import Session
    from ..server.server import Server
    from .state import ResetState


@dataclass(frozen=True)
class Task:
    """What is to be isolated: a `test`, class or module by its id; `sequences`, whether they are
    put back under rollback too; `auto`, whether the strategy was chosen by
    dbclone and not by the project."""

    test: str = ""
    sequences: bool = False
    auto: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a reset did.

    `reset`, which one; `seconds`, how long it took; `tables`, how many tables it found written;
    `spoiled`, why the database is not equal to its template any more and has to be replaced (empty:
    it is equal); `verdict`, whether somebody on the server committed something meanwhile, and it is
    not known where; `begun`, when the test began; `limit`, what a sandbox refused in the test;
    `notes`, what a person should know.
    """

    reset: str
    seconds: float
    tables: int = 0
    spoiled: str = ""
    verdict: Verdict = Verdict.NOTHING
    begun: Moment | None = None
    limit: str = ""
    notes: tuple[str, ...] = ()


class Host(Protocol):
    """What a strategy may ask of the clone that it works in."""

    server: Server
    handle: Any
    state: ResetState

    def replace(
        self, reason: str, quiet: bool = False, often: bool = False, gone: bool = False
    ) -> None:
        """Put a fresh copy of the template in the clone's place."""

    def keep_for(self, label: str) -> bool:
        """Keep the committed state in a database of its own; return whether that was possible."""

    def build(self) -> None:
        """Run the schema and the seed in the clone."""

    def connect_owner(self) -> psycopg.Connection[Any]:
        """Return an autocommit connection that may drop what is in the clone."""


class Strategy(abc.ABC):
    """One way to undo a test. An object serves one task.

    Attributes: `name`, as in the setting reset; `session`, the sandbox that the test's connections
    lead into, None if they are real ones; `fills_empty`, whether `begin` copes with a clone that
    has been emptied.
    """

    name: ClassVar[str]
    fills_empty: ClassVar[bool] = False
    session: Session | None = None

    def __init__(self, host: Host, task: Task) -> None:
        self.host, self.task = host, task

    @abc.abstractmethod
    def begin(self) -> None:
        """Make ready for the test, in few round trips. What raises leaves nothing half done, so
        that it can be begun again."""

    @abc.abstractmethod
    def end(self, label: str = "") -> Outcome:
        """Undo whatever the test did, however it ended, or say in the outcome that the database
        must be replaced.

        Arguments: `label`, keep what the test left under this name instead of undoing it.
        """


class Committing(Strategy):
    """A strategy under which tests commit for real,
    and which undoes afterwards what they have committed."""

    def begin(self) -> None:
        """Raise SandboxLimit inside a class or module that is isolated by rollback."""
        if self.host.state.layered:
            raise SandboxLimit(
                f"a test wants reset={self.name!r} inside a class or module that is isolated"
                f" by rollback",
                f"{self.task.test or 'It'} would not see the data of dbclone_class or"
                f" dbclone_module, which are in a transaction.",
                "Use rollback for this test, or make the data in the test.",
            )

    def end(self, label: str = "") -> Outcome:
        started = monotonic()
        if label and self.host.keep_for(label):
            return Outcome(self.name, monotonic() - started)
        return self.undo()

    @abc.abstractmethod
    def undo(self) -> Outcome:
        """Undo what has been committed."""


def failure(error: BaseException) -> str:
    """Return the first line of what an error says, for an outcome."""
    return (str(error).strip().splitlines() or [""])[0]
