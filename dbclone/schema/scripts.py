"""Which statements of SQL scripts may run in the database being built, which are done without, and
which are refused.

Three things decide: what a statement reaches (`reach`), whether the file is a dump *into* the
build, and which roles there are. A file is a dump into the build if it creates one database and
connects to that one and no other before it makes anything, as `pg_dump --create` writes it. Nothing
is connected to here; all scripts are looked through before the first statement of any runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import BuildFailed
from ..sql import reach as reaches
from ..sql.reach import Naming, Reach, first_word, might, naming, plants, reach
from ..sql.statements import Statement, split

#: The comment of a role that is there only because a schema names it.
STAND_IN = "made by dbclone, because a schema names it"


class Script(NamedTuple):
    """One file: `shown`, what people call it, and its text."""

    shown: str
    text: str


@dataclass(frozen=True)
class Roles:
    """What decides about roles: those of the server and who belongs to whom.

    `private`, whether the server is ours, so that a schema may make roles on it; `me`, who builds;
    `there`, the roles; `stand_ins`, those of them that dbclone made for a schema that names them;
    `members`, pairs of a role and its member; `maker`, whether roles that are missing will be made
    before the scripts run.
    """

    private: bool
    me: str = ""
    there: frozenset[str] = frozenset()
    stand_ins: frozenset[str] = frozenset()
    members: frozenset[tuple[str, str]] = frozenset()
    maker: bool = False


@dataclass
class ScriptPlan:
    """What becomes of a script: `changed`, by number, statements that run otherwise or (None) not
    at all; `notes`, what to tell; `lacking`, the roles that there are not."""

    script: Script
    changed: dict[int, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)

    def statements(self) -> Iterator[Statement]:
        """Yield what is to run, in order."""
        for number, statement in enumerate(split(self.script.text)):
            text = self.changed.get(number, statement.text)
            if text is not None:
                yield (
                    statement
                    if text is statement.text
                    else Statement(text, statement.line, statement.data)
                )


class Refusal(NamedTuple):
    """A statement that may not run: where, what it is, why, and what to do instead."""

    where: str
    what: str
    why: str
    instead: str


class _Found(NamedTuple):
    number: int
    statement: Statement
    line: int
    reaches: tuple[Reach, ...]
    naming: Naming | None


# What a dump does before it connects
_QUIET = ("SET", "RESET", "SELECT", "SHOW", "BEGIN", "COMMIT", "END", "START")
_SET_ROLE = ("SET ROLE", "SET SESSION AUTHORIZATION")


def plans(
    scripts: Sequence[Script], roles: Roles, here: str = ""
) -> tuple[list[ScriptPlan], list[str]]:
    """Return what becomes of each script, and the roles that are missing and are to be made before.

    Arguments: `roles`, those of the server; `here`, the database being built, if it is there
    already. Raises BuildFailed, with file, line and statement, if one reaches beyond that database.
    """
    found = [(ScriptPlan(script), list(_look(script.text))) for script in scripts]
    created = {
        n
        for _, entries in found
        for e in entries
        for r in e.reaches
        if _makes(r)
        for n in r.names
        if n
    }
    judge = _Judge(roles, frozenset(created), here)
    for plan, entries in found:
        judge.judge(plan, entries)
    if judge.refused:
        raise _error(judge.refused)
    return [plan for plan, _ in found], sorted(judge.missing)


def refusals(script: Script, roles: Roles) -> list[Refusal]:
    """Return what psql itself may not run of a script:
    it leaves nothing out, and obeys backslash commands."""
    judge = _Judge(roles, frozenset(), "", by_psql=True)
    entries = list(_look(script.text))
    judge.created = frozenset(
        n for e in entries for r in e.reaches if _makes(r) for n in r.names if n
    )
    judge.judge(ScriptPlan(script), entries)
    return judge.refused


def _makes(one: Reach) -> bool:
    return one.kind == reaches.ROLE and one.verb == "CREATE"


def _look(text: str) -> Iterator[_Found]:
    """Yield what matters of a script: statements that reach beyond, or name roles, and the first
    one that makes something."""
    planted: dict[str, tuple[Reach, ...]] = {}
    worked = False
    for number, statement in enumerate(split(text)):
        first = first_word(statement.text)
        interesting = might(statement.text, first)
        found = reach(statement.text) if interesting else ()
        if planted and any(name in statement.text.lower() for name in planted):
            for name in dict.fromkeys(reaches.calls(statement.text)):
                found += tuple(_through(name, one) for one in planted.get(name, ()))
        if interesting and first == "CREATE" and (planting := plants(statement.text))[1]:
            planted[planting[0]] = planting[1]
        roles = naming(statement.text) if interesting else None
        works = not worked and not found and first not in _QUIET
        if found or roles or works:
            worked = worked or works
            at = found[0].at if found else 0
            yield _Found(
                number, statement, statement.line + statement.text.count("\n", 0, at), found, roles
            )


def _through(name: str, one: Reach) -> Reach:
    return Reach(
        one.kind,
        f"{one.what} in function {name}",
        one.names,
        (),
        one.verb,
        one.pairs,
        alone=False,
        body=True,
    )


def _target(entries: Sequence[_Found]) -> tuple[str, int]:
    """Return the database that stands for the one being built, and the number of the first
    \\connect; ("", 0) if there is none."""
    created = {
        r.names[0]: e.number for e in reversed(entries) for r in e.reaches if _creates_database(r)
    }
    connects = [
        (e.number, r.names[0])
        for e in entries
        for r in e.reaches
        if r.kind == reaches.CONNECT and r.names[0]
    ]
    if len(created) != 1 or not connects or {name for _, name in connects} != set(created):
        return "", 0
    ((name, made),) = created.items()
    first = connects[0][0]
    worked = any(
        e.number < first and not e.reaches
        for e in entries
        if first_word(e.statement.text) not in _QUIET
    )
    return (name, first) if made < first and name and not worked else ("", 0)


def _creates_database(one: Reach) -> bool:
    return one.kind == reaches.DATABASE and one.verb == "CREATE" and not one.body


_LEFT_OUT = "left out, because"


@dataclass
class _Notes:
    """What is left out of a script, or run otherwise, and how often; `target`, the database that
    stands in it for the one being built."""

    target: str
    left: Counter[str] = field(default_factory=Counter)  # about the database
    aimed: Counter[str] = field(default_factory=Counter)
    there: Counter[str] = field(default_factory=Counter)  # about roles

    def lines(self) -> list[str]:
        """Return what is to be said about it."""
        stands = f"{_LEFT_OUT} {self.target} stands for the database being built"
        aimed = f"run on the database being built instead of {self.target}"
        roles = f"{_LEFT_OUT} the roles of the server are as they are"
        found = ((stands, self.left), (aimed, self.aimed), (roles, self.there))
        return [f"{why}: {_shown(what)}" for why, what in found if what]


class _Judge:
    """Decides statement by statement, over all scripts."""

    def __init__(
        self, roles: Roles, created: frozenset[str], here: str, by_psql: bool = False
    ) -> None:
        self.roles, self.created, self.here, self.by_psql = roles, created, here, by_psql
        self.refused: list[Refusal] = []
        self.missing: set[str] = set()

    def judge(self, plan: ScriptPlan, entries: Sequence[_Found]) -> None:
        target, first = ("", 0) if self.by_psql else _target(entries)
        notes = _Notes(target)
        lacking: dict[str, Counter[str]] = {}
        for entry in entries:
            text: str | None = entry.statement.text
            for one in entry.reaches:
                if not self._is_run(plan, entry, one, first, notes):
                    text = None
            if text is not None and entry.naming is not None and not self.by_psql:
                text = self._named(text, entry.naming, lacking)
            if text is not None and any(one.spans for one in entry.reaches):
                text = self._aimed(text)
            if text is not entry.statement.text:
                plan.changed[entry.number] = text
        plan.notes += notes.lines()
        plan.lacking = sorted(name for name in lacking if name not in self.roles.there)
        for name, clauses in sorted(lacking.items()):
            why = (
                f"there is no role {name}"
                if name not in self.roles.stand_ins
                else f"role {name} is there in name only"
            )
            plan.notes.append(f"{_LEFT_OUT} {why}: {_shown(clauses)}")

    def _is_run(
        self, plan: ScriptPlan, entry: _Found, one: Reach, first: int, notes: _Notes
    ) -> bool:
        """Return whether a statement may run as far as `one` goes that it reaches; what is refused
        is noted, and so is what is left out. `first` is the first statement of the script that
        counts as one on the database being built."""
        target = notes.target
        if one.kind == reaches.HARMLESS:
            return False
        if self.by_psql and one.kind == reaches.PSQL and not reaches.LEADING.fullmatch(one.what):
            return False
        if one.kind == reaches.CONNECT and one.names[0] in ("", target):  # none: the same again
            if one.names[0]:
                notes.left[one.what] += 1
            return False
        if one.kind == reaches.DATABASE and target and set(one.names) == {target} and not one.body:
            if one.verb in ("CREATE", "DROP") and entry.number > first:
                self._refuse(plan, entry, one)
            elif one.spans and all(self._known(role) for role, _ in one.pairs):
                notes.aimed[one.what] += 1
                return True
            else:
                notes.left[one.what] += 1
            return False
        answer = self._role(one, entry.naming) if one.kind == reaches.ROLE else "refuse"
        if answer == "leave":
            notes.there[one.what] += 1
            return False
        if answer != "run":
            self._refuse(plan, entry, one)
        return True

    def _refuse(self, plan: ScriptPlan, entry: _Found, one: Reach) -> None:
        why, instead = _reason(one, self.roles, self.by_psql)
        self.refused.append(Refusal(f"{plan.script.shown}:{entry.line}", one.what, why, instead))

    def _known(self, name: str) -> bool:
        return (
            name in self.roles.there
            or name in self.created
            or name.upper() in reaches.ANYONE
            or name == "ALL"
        )

    def _role(self, one: Reach, named: Naming | None) -> str:
        """Return "run", "leave" or "refuse" for a statement about roles."""
        roles, names = self.roles, set(one.names)
        own = names <= self.created
        # psql leaves nothing out.
        leave = "leave" if not self.by_psql else "run" if roles.private else "refuse"
        # What changes nothing as things are
        harmless = "run" if one.body or self.by_psql else "leave"
        if one.pairs:
            if roles.private:
                return "run"
            missing = (
                [] if named is None else [name for name in named.names if not self._known(name)]
            )
            if all((pair in roles.members) == (one.verb == "GRANT") for pair in one.pairs):
                return harmless
            return (
                "leave"
                if missing and named is not None and named.without(frozenset(missing)) is None
                else "refuse"
            )
        if one.verb == "CREATE":
            if names <= roles.there:
                return harmless if not one.alone or self.by_psql else "leave"
            return "run" if roles.private else "refuse"
        if one.verb == "DROP":
            if one.if_exists and not names & roles.there:
                return harmless
            return leave if own and not one.body else "refuse"
        if roles.me in names:
            return leave if own and not one.body else "refuse"
        if own and roles.private:
            return "run"
        return leave if own and names <= roles.there and one.alone else "refuse"

    def _named(self, text: str, named: Naming, lacking: dict[str, Counter[str]]) -> str | None:
        """Return a statement without the roles that there are not."""
        acts = named.clause in _SET_ROLE
        lost = [
            name
            for name in named.names
            if not self._known(name)
            or (acts and name in self.roles.stand_ins and name not in self.created)
        ]
        if not lost:
            return text
        if self.roles.maker and not acts:
            # Those of the server's own, pg_…, are in later versions or nowhere.
            self.missing.update(name for name in lost if not name.startswith("pg_"))
            lost = [name for name in lost if name.startswith("pg_")]
            if not lost:
                return text
        for name in lost:
            lacking.setdefault(name, Counter())[named.clause] += 1
        return named.without(frozenset(lost))

    def _aimed(self, text: str) -> str:
        """Return a statement about the database that a dump names, about the one being built."""
        if not self.here:
            return text
        for one in reach(text):
            for start, stop in one.spans:
                name = self.here.replace('"', '""')
                return f'{text[:start]}"{name}"{text[stop:]}'
        return text


def _shown(what: Counter[str]) -> str:
    parts = [name if count == 1 else f"{count} × {name}" for name, count in what.items()]
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")


_PSQL_INSTEAD = {
    "\\i": "Name both files in schema, in the order in which they are to run.",
    "\\ir": "Name both files in schema, in the order in which they are to run.",
    "\\include": "Name both files in schema, in the order in which they are to run.",
    "\\include_relative": "Name both files in schema, in the order in which they are to run.",
    "\\copy": "Write COPY … FROM STDIN with the lines below it and \\. at their end.",
    "\\gexec": "Write a DO block with EXECUTE.",
    "\\set": "Write the value where the variable stands.",
    "\\c": "A file belongs to one database: keep what is the application's in it, and leave"
    " \\connect out.",
    "\\connect": "A file belongs to one database: keep what is the application's in it, and leave"
    " \\connect out.",
}


_OF_THIS = {
    "ALTER": "ALTER DATABASE %I SET work_mem = 8192",
    "GRANT": "GRANT TEMPORARY ON DATABASE %I TO reader",
    "REVOKE": "REVOKE TEMPORARY ON DATABASE %I FROM reader",
}


def _reason(one: Reach, roles: Roles, by_psql: bool) -> tuple[str, str]:
    """Return why something is refused, and what to do instead:
    never a command that writes elsewhere."""
    if by_psql and one.kind in (reaches.DATABASE, reaches.CONNECT):
        return (
            "psql would do that on the whole server, and go where it is told.",
            "Name the file itself in schema: of a dump made with --create dbclone leaves"
            " such statements out.",
        )
    if one.kind == reaches.CONNECT:
        return (
            "It leads into another database. Only a file that creates one database and connects to"
            " that one, before it makes anything, is taken for a dump into the build.",
            _PSQL_INSTEAD["\\connect"],
        )
    if one.kind == reaches.DATABASE:
        if one.verb in ("ALTER", "GRANT", "REVOKE"):
            return (
                "It changes a database by its name, which the one being built does not have.",
                "For the database being built write its name as %I, as in DO $$ BEGIN EXECUTE"
                f" format('{_OF_THIS[one.verb]}', current_database()); END $$;",
            )
        if one.verb == "COMMENT":
            return (
                "The comment of the database being built is dbclone's mark, and others are"
                " not its own.",
                "Leave it out.",
            )
        return (
            "It creates, changes or drops a database; dbclone makes one to build in, and"
            " nothing else is written.",
            "Leave it out. A dump made with --create may have it, if it creates one database"
            " and connects to no other.",
        )
    if one.kind == reaches.ROLE:
        if not roles.private and one.verb == "CREATE":
            return (
                "Roles belong to the whole server, and this one is somebody's own.",
                "Leave it out: what the schema gives to roles that the server does not have is left"
                " out, too. Or use the private server (no url), where a schema may make roles.",
            )
        return (
            "It changes what all databases of the server share.",
            "Leave it out. A schema may change roles that it creates itself, on the private"
            " server.",
        )
    if one.kind == reaches.PSQL:
        first = one.what.split()[0]
        return "It is a line for psql, not for the server.", _PSQL_INSTEAD.get(
            first, "Leave it out, or write it in SQL."
        )
    if "strings" in one.what:
        return (
            "Quotes and backslashes would end literals elsewhere than they seem to.",
            "Write literals with backslashes as E'…'.",
        )
    if "COPY" in one.what and "file" in one.what:
        return "It reads or writes a file of the server's machine.", _PSQL_INSTEAD["\\copy"]
    if "SERVER" in one.what or "MAPPING" in one.what or "FOREIGN" in one.what:
        return (
            "What is written to a foreign table is written on another server.",
            "Leave it out: tests cannot undo what they write there.",
        )
    return (
        "It reaches what all databases of the server share, or what is outside of them.",
        "Leave it out.",
    )


def _error(refused: Sequence[Refusal]) -> BuildFailed:
    first = refused[0]
    is_psql = first.what.startswith("\\") and not first.what.startswith("\\connect ")
    message = (
        "is a command of psql, not SQL" if is_psql else "reaches beyond the database being built"
    )
    more = [f"Also {r.where}: {r.what}" for r in refused[1:8]]
    if len(refused) > 8:
        more.append(f"and {len(refused) - 8} more")
    return BuildFailed(
        f"{first.where}: {first.what} {message}",
        "\n".join([f"{first.why} Nothing has been run.", *more]),
        first.instead,
    )
