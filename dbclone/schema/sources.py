"""What goes into a template, and the manifest that tells when it has changed: SQL files, a command,
a callable.

Schemas made from an ORM's objects are in `adapters/`; anything with the two verbs of `Schema` will
do.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..errors import BuildFailed, Error, encodable, safe_str
from ..server.dsn import Dsn, libpq_options, mask_any, parse, redacting
from ..server.session_options import ALONE, UNTIL_THE_END
from ..settings import Settings
from .environment import program_environment
from .manifest import digest
from .scripts import STAND_IN, Roles, Script, ScriptPlan, plans

Progress = Callable[[str], None]


class Schema(Protocol):
    """What goes into a template.

    `manifest` promises every input that decides what `build` makes, by name and digest, without
    connecting anywhere. `build` promises to make it in the empty database at `url`, to report each
    step to `progress`, and to leave no session open.
    """

    def manifest(self) -> Mapping[str, str]: ...

    def build(self, url: str, progress: Progress) -> None: ...


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key in which 2_b.sql comes before 10_a.sql."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", path.as_posix())
        if part
    ]


def find_files(settings: Settings, key: str, patterns: Iterable[str]) -> list[Path]:
    """Return the files that `patterns` name below the project's root: patterns in their order, each
    one's files in natural order.

    A pattern that names a folder stands for all files below it. Raises SettingsError if a pattern
    matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            base = Path(pattern).expanduser()
            anchor = Path(base.anchor) if base.is_absolute() else settings.root
            relative = base.relative_to(anchor).as_posix() if base.is_absolute() else pattern
            matches = [path for path in anchor.glob(relative) if "__pycache__" not in path.parts]
            for folder in [path for path in matches if path.is_dir()]:
                matches += [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
            files = sorted((path for path in set(matches) if path.is_file()), key=_natural)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # too long, no pattern, or the home of nobody
            raise settings.error(
                key, f"cannot look for {pattern!r}: {error}", "Name files, by glob."
            ) from None
        if not files:
            raise settings.error(
                key, f"no file matches {pattern!r}", f"Paths are relative to {settings.root}."
            )
        found.update(dict.fromkeys(files))
    return list(found)


def file_entries(settings: Settings, files: Iterable[Path]) -> dict[str, str]:
    """Return the manifest's entries of files: each one's name below the project's root, and the
    digest of its content."""
    entries = {}
    for path in files:
        name = path.relative_to(settings.root) if path.is_relative_to(settings.root) else path
        entries[encodable(f"file {name.as_posix()}")] = digest(path.read_bytes())
    return entries


@dataclass(frozen=True)
class SqlFiles:
    """SQL scripts, each run in a session of its own, as `psql -f` would; without what reaches
    beyond the database (`scripts`).

    `private`, whether they run on the private server, where they may make roles.
    """

    settings: Settings = field(repr=False)
    patterns: tuple[str, ...]
    private: bool = False

    def manifest(self) -> Mapping[str, str]:
        files = find_files(self.settings, "schema", self.patterns)
        entries = file_entries(self.settings, files)
        if len(files) > 1:
            entries["order of SQL files"] = digest("\0".join(entries).encode())
        return entries

    def scripts(self) -> list[Script]:
        """Return the files as they are read. Raises SettingsError, and BuildFailed for one that is
        not UTF-8."""
        found = []
        for path in find_files(self.settings, "schema", self.patterns):
            shown = str(
                path.relative_to(self.settings.root)
                if path.is_relative_to(self.settings.root)
                else path
            )
            try:
                # With every end of line as it is, because literals have them too.
                found.append(Script(encodable(shown), path.read_bytes().decode("utf-8-sig")))
            except UnicodeDecodeError as error:
                raise BuildFailed(
                    f"{encodable(shown)} is not UTF-8", str(error), "Save the file as UTF-8."
                ) from error
        return found

    @redacting
    def build(self, url: str, progress: Progress) -> None:
        from ..server.connection import connect

        dsn = parse(url)
        scripts = self.scripts()
        progress(f"looking through {', '.join(script.shown for script in scripts)}"[:200])
        with connect(dsn, autocommit=True) as connection:
            roles = roles_of(
                lambda query: connection.execute(query.encode()).fetchall(), self.private
            )
        # All of them before the first statement of any runs.
        for plan in plans(scripts, roles, dsn.get("dbname"))[0]:
            for note in plan.notes:
                progress(f"{plan.script.shown}: {note}")
            self._run(plan, dsn, progress)

    def _run(self, plan: ScriptPlan, dsn: Dsn, progress: Progress) -> None:
        import psycopg

        from ..server.connection import connect

        shown = plan.script.shown
        # What is shown is masked before it is cut, which could leave half a password
        mask = dsn.mask
        with connect(
            dsn, autocommit=True, options=f"{libpq_options(dsn)} {ALONE}".strip()
        ) as connection:
            connection.execute(f"SELECT {UNTIL_THE_END}".encode())
            for statement in plan.statements():
                where = f"{shown}:{statement.line}"
                progress(f"{where}: {' '.join(mask(statement.text[:2000]).split())[:60]}")
                try:
                    if statement.data is None:
                        connection.execute(statement.text.encode())
                    else:
                        with connection.cursor().copy(statement.text.encode()) as copy:
                            copy.write(statement.data)
                except psycopg.Error as error:
                    quoted = "\n".join(
                        line[:200] for line in mask(statement.text[:20_000]).splitlines()[:12]
                    )
                    lacks = (
                        f"Give role {connection.info.user!r} what it lacks, or let url name a role"
                        " that has it."
                    )
                    more = [
                        f"{k}: {v}"
                        for k, v in (
                            ("DETAIL", error.diag.message_detail),
                            ("HINT", error.diag.message_hint),
                        )
                        if v
                    ]
                    raise BuildFailed(
                        f"{where}: {error.diag.message_primary or str(error).strip()}",
                        "\n".join([f"The statement is:\n{quoted}", *more]),
                        lacks
                        if error.sqlstate == "42501"
                        else "Correct the statement; no template was left behind.",
                    ) from error
            if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                raise BuildFailed(
                    f"{shown} ends inside a transaction",
                    "Its last BEGIN has no COMMIT, so nothing of it would stay.",
                    "Add COMMIT.",
                )


_MEMBERS = (
    "SELECT r.rolname::text, m.rolname::text FROM pg_auth_members"
    " JOIN pg_roles r ON r.oid = roleid JOIN pg_roles m ON m.oid = member"
)


def roles_of(
    fetch: Callable[[str], list[tuple[Any, ...]]], private: bool, maker: bool = False
) -> Roles:
    """Return what decides about roles, asked of the server.

    Arguments: `fetch`, runs a query there; `private`, whether that server is ours; `maker`, as in
    `Roles`.
    """
    names = fetch(
        "SELECT rolname::text, shobj_description(oid, 'pg_authid'), rolcanlogin, rolname ="
        " current_user FROM pg_roles"
    )
    return Roles(
        private,
        me=next(name for name, _, _, me in names if me),
        there=frozenset(name for name, *_ in names),
        stand_ins=frozenset(
            name for name, comment, login, _ in names if comment == STAND_IN and not login
        ),
        members=frozenset((role, member) for role, member in fetch(_MEMBERS)),
        maker=maker,
    )


def output_tail(dsn: Dsn, output: bytes) -> str:
    """Return the end of what a program has printed, without passwords: masked before it is cut,
    which could leave half of one."""
    text = mask_any(dsn.mask(output[-50_000:].decode(errors="replace")))[-10_000:]
    return "\n".join(text.splitlines()[-40:]) or "(nothing)"


def run_nothing_unasked(settings: Settings) -> None:
    """Raise SettingsError if a command that only looks would run a program for the schema that only
    a file of the repository names, which its user may never have read."""
    if settings.looking and settings.of_repository("schema"):
        raise settings.error(
            "schema",
            "the template is not there, and this command runs no program that a repository names",
            "To have it built: python -m dbclone prepare",
        )


@dataclass(frozen=True)
class Command:
    """A program that builds the schema, run without a shell in the project's root, with the URL in
    its environment."""

    runs_code: ClassVar[bool] = True  # of the project, which may connect to another database
    settings: Settings = field(repr=False)
    line: str

    def words(self) -> list[str]:
        """Return the command line parted as a shell would. Raises SettingsError."""
        try:
            return shlex.split(self.line)
        except ValueError as error:
            raise self.settings.error(
                "schema", f"the command cannot be parsed: {error}", "Close the quotes."
            ) from None

    def _inputs(self) -> tuple[str, ...]:
        """Return what the command reads, as far as it can be told: declared, or files it names."""
        if self.settings.inputs is not None:
            return self.settings.inputs
        words = self.words()
        root = self.settings.root
        found = [
            word for word in words[1:] if word not in (".", "..") and os.path.exists(root / word)
        ]  # False if it is too long
        if not found:
            raise self.settings.error(
                "schema",
                "cannot tell which files this command depends on",
                "Name them: inputs = ['migrations/**/*.py'], or inputs = [] if there are none.",
                "A template must be rebuilt when they change.",
            )
        return tuple(dict.fromkeys(found))

    def manifest(self) -> Mapping[str, str]:
        entries = {
            encodable(f"command {mask_any(self.line)}"): digest(self.line.encode(errors="replace"))
        }
        return entries | file_entries(
            self.settings, find_files(self.settings, "inputs", self._inputs())
        )

    @redacting
    def build(self, url: str, progress: Progress) -> None:
        __tracebackhide__ = True  # from pytest, which shows variables
        line = mask_any(self.line)
        run_nothing_unasked(self.settings)
        progress(f"running {line}")
        words = self.words()
        dsn = parse(url)
        try:
            with program_environment(self.settings, dsn) as environ:
                done = subprocess.run(
                    words,
                    cwd=self.settings.root,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
        except OSError as error:
            problem = f"the command cannot be started: {error.strerror}"
            raise self.settings.error("schema", problem, f"Is {words[0]} installed?") from None
        if done.returncode:
            raise BuildFailed(
                f"the command failed with exit status {done.returncode}: {line}",
                f"It printed:\n{output_tail(dsn, done.stdout)}",
                "Correct it; no template was left behind.",
            )


@dataclass(frozen=True)
class Function:
    """A callable of the project that builds or seeds: called with the URL, or with nothing if it
    takes nothing."""

    runs_code: ClassVar[bool] = True  # of the project, which may connect to another database
    settings: Settings = field(repr=False)
    key: str
    spec: str
    function: Callable[..., Any]

    def _files(self) -> list[Path]:
        """Return the sources that decide what the function does: its own module and `inputs`, or
        else its whole package."""
        module = inspect.getmodule(self.function)
        own = Path(getattr(module, "__file__", None) or "")
        files = [own.resolve()] if own.is_file() else []
        if self.settings.inputs is not None:
            return [*files, *find_files(self.settings, "inputs", self.settings.inputs)]
        package = sys.modules.get(module.__name__.partition(".")[0]) if module is not None else None
        for folder in map(Path, getattr(package, "__path__", ())):
            if folder.resolve().is_relative_to(self.settings.root.resolve()):
                files += sorted(path.resolve() for path in folder.rglob("*.py"))
        return list(dict.fromkeys(files))

    def manifest(self) -> Mapping[str, str]:
        return {
            f"{self.key} {self.spec}": digest(self.spec.encode()),
            **file_entries(self.settings, self._files()),
        }

    @redacting
    def build(self, url: str, progress: Progress) -> None:
        progress(f"calling {self.spec}")
        try:
            takes_url = bool(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):
            takes_url = True
        try:
            self.function(url) if takes_url else self.function()
        except Error:
            raise
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)[1:]
            own = [
                f for f in frames if Path(f.filename).is_relative_to(self.settings.root)
            ] or frames
            where = (
                f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}: {own[-1].line}"
                if own
                else self.spec
            )
            raise BuildFailed(
                f"{self.key} {self.spec} raised {type(error).__name__}:"
                f" {(safe_str(error).splitlines() or [''])[0]}",
                f"It was raised at {where}",
                "Correct it; no template was left behind.",
            ) from error


@dataclass(frozen=True)
class Steps:
    """Several schemas one after the other; the seed is the last."""

    parts: Sequence[Schema]

    def manifest(self) -> Mapping[str, str]:
        return {name: digest_ for part in self.parts for name, digest_ in part.manifest().items()}

    def build(self, url: str, progress: Progress) -> None:
        for part in self.parts:
            part.build(url, progress)
