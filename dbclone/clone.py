"""A clone: one worker's own copy of a template, under a lease, and the isolation of each test in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg

from . import adapters
from .clock import monotonic
from .errors import SandboxLimit, ServerError, SettingsError
from .isolation import Isolation, data_lost
from .owned import Owned
from .recovery import is_alive, told, twice
from .reset import Outcome, pick
from .reset.audit import escaped
from .reset.control import Spoiled
from .reset.rollback import Rollback
from .reset.sandbox import Session
from .reset.sequences import Sequence
from .reset.witness import Verdict
from .sessions import application_name, named
from .settings import RESETS


@dataclass(repr=False)
class Clone(Owned):
    """A database copied from a template, owned by one worker of one run for as long as its lease is held, in which tests are
    isolated. Use `Template.clone`.

    Attributes: `name`; `dsn`; `owner`, the worker; `handle`, the application's database handle or None; `report`, what its resets
    cost; `escalated`, tests that committed outside a sandbox before, which auto isolates by truncate; `isolating`, how many blocks
    of `isolated` are open.
    """

    escalated: set[str] = field(default_factory=set)
    isolating: int = 0
    _keeping: str = ""  # what the isolation that ends now is to be kept for
    _lending: contextlib.ExitStack | None = field(default=None, repr=False)
    _lost: str = ""  # what has become of the data of a class or module that is still open

    @contextlib.contextmanager
    def isolated(self, reset: str = "auto", test: str = "", reset_sequences: bool | None = None) -> Iterator[Isolation]:
        """Run the block with the clone equal to its template at the start, and undo whatever the block wrote at its end.

        Arguments: `reset`, "auto", "rollback", "truncate", "clone", "drop" or "none"; `test`, what runs in the block, for sessions
        and reports; `reset_sequences`, put sequences back under rollback too (default: the setting). Raises SandboxLimit,
        ResetBlocked, and WriteEscaped if the setting `strict` is on.
        """
        self.server.home.needed()
        wanted = self.choose(reset, test)
        sequences = self.server.settings.reset_sequences if reset_sequences is None else reset_sequences
        self._look(wanted)
        with self._isolating(), named(application_name(self.owner, test) if test else ""):
            if wanted == "rollback":
                with self._layer(test, sequences, reset == "auto") as session:
                    isolation = self._view(wanted, test, session)
                    try:
                        yield isolation
                    finally:
                        self._keeping = isolation.kept if self._over(isolation) else ""
                return
            if self._lending is not None:
                raise SandboxLimit(
                    f"a test wants reset={wanted!r} inside a class or module that is isolated by rollback",
                    f"{test or 'It'} would not see the data of dbclone_class or dbclone_module, which are in a transaction.",
                    "Use rollback for this test, or make the data in the test.",
                )
            twice(self.server, "a test began", lambda: self._prepare(wanted), self._begin_anew)
            isolation = self._view(wanted, test, None)
            try:
                yield isolation
            finally:
                if self._over(isolation) and not (isolation.kept and self._keep_for(isolation.kept)):
                    self._settle(self._finish(wanted), test)

    @contextlib.contextmanager
    def _isolating(self) -> Iterator[None]:
        """Follow what the application has put behind its handle, and count the block."""
        adapters.look()
        self.isolating += 1
        try:
            yield
        finally:
            self.isolating -= 1

    def _over(self, isolation: Isolation) -> bool:
        """Close what a test opened; return False in a forked process, in which nothing is over: all of it is its parent's."""
        if not self.server.home.left:
            isolation.close()
        return not self.server.home.left

    def _look(self, wanted: str = "") -> None:
        """Have a fresh clone if this one is known not to be equal to the template before a test begins.

        With the connection that holds the lease, the server may have lost what it committed last: the reset of the last test.
        """
        if self._lending is None and not is_alive(self.server.connection):
            self.replace("the connection to the server was lost between two tests")
        elif self._drop.empty and wanted != "drop":
            self.replace("the reset drop", quiet=True)

    def _prepare(self, wanted: str) -> None:
        """Make ready for a test that commits for real."""
        if wanted == "truncate":
            reset = self._undo.truncating()
            if self._undo.moved:
                reset.restore_sequences()  # earlier rollbacks left them where they were
                self._undo.moved = False
        elif wanted == "drop":
            self._drop.before()

    def _begin_anew(self) -> None:
        """Have a fresh clone, because it has shown that our sessions were lost since the last test."""
        if self._lending is not None:
            self._lost = "its connection was lost between two tests"
            raise data_lost(self._lost)
        self.replace("its connections were lost between two tests")

    def _finish(self, wanted: str) -> Outcome:
        if wanted in ("truncate", "drop"):
            try:
                if wanted == "truncate":
                    return self._undo.truncating().after()
                adapters.closed(self.handle)
                self._undo.forget()
                return self._drop.after()
            except (psycopg.Error, ServerError) as error:
                what = type(error).__name__ if wanted == "truncate" else "not everything could be dropped"
                return Outcome(wanted, 0.0, spoiled=f"{what}: {str(error).strip().splitlines()[0]}")
            except BaseException:
                self.replace("a reset that failed", quiet=True)  # the next test must not find what this one left
                raise
        started = monotonic()
        if wanted == "clone":
            self.replace("a test that wanted a fresh clone", quiet=True, often=True)
        else:
            self._undo.tainted = True
        return Outcome(wanted, monotonic() - started)

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[Isolation]:
        """Keep what the block writes for as long as it lasts, as an outer layer of the tests inside it, and undo it at the end.

        Arguments: `name`, of the class or module, for reports. Raises SandboxLimit if the handle cannot be sandboxed.
        """
        self._look()
        with self._layer(name) as session:
            isolation = self._view("rollback", name, session)
            try:
                yield isolation
            finally:
                self._over(isolation)

    def _view(self, reset: str, test: str, session: Session | None) -> Isolation:
        return Isolation(
            self.name,
            self.url,
            reset,
            test,
            adapters.present(self.handle),
            lambda **options: self.connect(test, **options),
            self.snapshot,
            self.restore,
            session,
            dsn=self.dsn,
        )

    def choose(self, reset: str, test: str = "") -> str:
        """Return the reset that will be used for `reset` and a test.

        Under auto it is truncate where there is no handle to lend a sandbox to, because then the application has connections of
        its own which commit for real, for a test that was seen committing outside its sandbox, and where the application has a role
        of its own: a sandbox is one session, in which the test itself would see and write no more than that. Raises SettingsError.
        """
        if reset not in RESETS:
            choice = ", ".join(RESETS)
            raise SettingsError(f"{reset!r} is no reset", f"{test or 'A block'} asked for it.", f"Choose one of {choice}.")
        nowhere = adapters.present(self.handle) is None
        outside = nowhere or self.role is not None or test in self.escalated or bool(adapters.refusal(self.handle))
        if reset == "auto" and self._lending is None and outside:
            return "truncate"
        return pick(reset)

    @contextlib.contextmanager
    def _layer(self, test: str, sequences: bool = False, auto: bool = False) -> Iterator[Session]:
        """Hold one more level of the sandbox for the block; the outermost lends it to the application's handle."""
        outermost = self._lending is None
        if not outermost and (self._lost or self._undo.broken):
            self._lost = self._lost or "its connection was lost"
            raise data_lost(self._lost)

        def begin() -> tuple[Session, tuple[Sequence, ...] | None, Rollback]:
            session = self._undo.sandbox()
            positions = self._undo.positions if sequences and outermost else None
            level = Rollback(session, positions, self._undo.witness, self._undo.owner_session)
            level.before()
            return session, positions, level

        with contextlib.ExitStack() as stack:
            session, positions, level = twice(self.server, "a test began", begin, self._begin_anew)
            try:
                if outermost:
                    stack.callback(session.disconnect)
                    stack.enter_context(adapters.lent(self.handle, session))
                    self._lending = stack
                yield session
            finally:
                if outermost:
                    self._lending, self._lost = None, ""
                if self.server.home.left:
                    self._lending = stack.pop_all()  # kept, so that nothing of the parent's ends here
                else:
                    label, self._keeping = self._keeping, ""
                    outcome = level.after() if not label else self._kept(level, stack, label)
                    stack.close()
                    self._undo.moved = self._undo.moved or positions is None
                    self._escalate(session.met(), test, auto)
                    self._settle(outcome, test, auto)
                    self._undo.keep_small()

    def _kept(self, level: Rollback, stack: contextlib.ExitStack, label: str) -> Outcome:
        """Commit what a test left in its sandbox, and keep it. Data of a class or module around it go along."""
        started, failure = monotonic(), level.keep()
        stack.close()
        if failure or not self._keep_for(label):
            why = f"it could not be kept: {failure or 'see above'}"
            return Outcome("rollback", monotonic() - started, spoiled=why)
        self._lost = f"{label} failed, and what it left was kept" if self._lending is not None else ""
        return Outcome("rollback", monotonic() - started)

    def _settle(self, outcome: Outcome, test: str, auto: bool = False) -> None:
        """Note what a reset cost; replace the clone if it could not make it equal to the template; look for what escaped."""
        self.report.reset(outcome.reset, outcome.seconds, test)
        for note in outcome.notes:
            self.report.note(f"{test or 'a block'}: {note}")
        if outcome.spoiled:
            self.replace(f"{test or 'a block'}: {outcome.spoiled}")
            self._lost = f"{test or 'a block'}: {outcome.spoiled}" if self._lending is not None else ""
        elif outcome.verdict is not Verdict.NOTHING and not self._undo.tainted:
            self._search(outcome, test, auto)

    def _escalate(self, limit: str, test: str, auto: bool) -> None:
        """Remember a test in which the sandbox refused something, even if the application has swallowed the error. It is not run
        again at once: its fixtures and what it did outside the database cannot be undone."""
        if limit and auto:
            self.escalated.add(test)
            self.report.escaped.append(test)
            self.report.note(f"{test} needs real transactions ({limit}): from the next run on it begins with truncate")

    def _search(self, outcome: Outcome, test: str, auto: bool) -> None:
        """Find out whether what was committed on this server since the last reset is in this clone; remove it, and say so.

        What was committed before the test began is not the test's: a fixture of a wider scope made it, and it stays.
        """
        try:
            rows, other = self._undo.truncating().dirty(outcome.begun)
        except Spoiled as hidden:  # who committed it, and where, nobody can say
            if self._lending is None:  # else when the class or module has ended
                self.replace(f"{test or 'a block'}: {hidden}", quiet=True)
            return
        except psycopg.Error as failed:  # what it asks about is not there any more, or somebody locks it
            rows, other = {}, f"something that hides what else it was: {str(failed).strip().splitlines()[0]}"
        if not (rows or other):
            return
        if outcome.verdict is Verdict.BEFORE or not (any(rows.values()) or other):
            self._undo.adopt()
            return
        if auto:
            self.escalated.add(test)
            self.report.escaped.append(test)
        error = escaped(self.name, test, rows, other)
        self.report.note(error.message)
        self._settle(self._finish("truncate"), test)
        if self.server.settings.strict:
            raise error
        warnings.warn(str(error), stacklevel=2)

    def keep(self, label: str) -> str:
        """Keep the committed state in a database of its own, named after `label`, and go on with a fresh clone under the old name.

        Returns the name; `python -m dbclone status` lists it, `prune` drops it after `retain_days`. Raises SandboxLimit while a
        test is isolated by rollback, and psycopg.errors.ObjectInUse if a session may not be sent away.
        """
        self._aside("keep")
        return self._put_by(label)

    def snapshot(self, label: str) -> None:
        """Put the committed state aside as `label`, to `restore` it any number of times; it lasts as long as the clone.

        Connections of the application's handle are closed for it. Raises ResetBlocked if somebody else is connected, and
        SandboxLimit while a test is isolated by rollback.
        """
        self._aside("snapshot")
        with told(self.server, "a snapshot was taken"):
            self._snapshots.take(label)

    def restore(self, label: str) -> None:
        """Come back to the state that `snapshot` put aside, whatever has been committed since. Raises TemplateError if there is
        none of that name."""
        self._aside("restore")
        with told(self.server, "a snapshot was restored"):
            self._snapshots.come_back(label)

    def _aside(self, what: str) -> None:
        if self._lending is not None:
            raise SandboxLimit(
                f"{what}() inside a rollback",
                "It copies what has been committed, and in a sandbox nothing ever is.",
                'Isolate this test with @pytest.mark.dbclone(reset="truncate"), or use savepoint().',
            )
        self._put_aside()
