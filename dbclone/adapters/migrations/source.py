"""Migration tools that are known by name: Alembic, Django's `migrate` and Flask-Migrate.

Each runs as it always does, by its own interface and with the project's own `env.py` or settings,
but in a process of its own (`child`) whose every connection is watched (`guard`): whatever a file
names, what is migrated is the database being built. Their files are their inputs; `inputs` adds to
them. Nothing of these libraries is imported here.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ... import errors
from ...errors import BuildFailed, encodable
from ...schema.environment import program_environment
from ...schema.manifest import digest
from ...schema.sources import Progress, file_entries, find_files, output_tail, run_nothing_unasked
from ...server.dsn import mask_any, parse, redacting
from ...settings import Settings

_PYTHON = re.compile(r"python(3(\.\d+)?)?(\.exe)?|py")
_RUNNERS = (
    "uv",
    "poetry",
    "pipenv",
    "pdm",
    "hatch",
    "rye",
)  # of programs in the project's own environment
# Not `-m`, which would let a folder called alembic in the project be found before the library.
_CHILD = (
    "import sys; sys.path[:] = [*filter(None, sys.path), {!r}];"
    " from dbclone.adapters.migrations.child import main; main()"
)


@dataclass(frozen=True)
class Tool:
    """What one string of the setting `schema` says of a migration tool.

    Attributes: `name`, the library (alembic, django, flask); `arguments`, the words after its
    program's name; `script`, manage.py where that is the program.
    """

    name: str
    arguments: tuple[str, ...]
    script: str = ""


def tool(spec: str) -> Tool | None:
    """Return the tool that a string of the setting means, or None.

    `alembic` and `alembic:path/alembic.ini` mean an upgrade to all heads. Command lines are known
    if they upgrade, and run in the environment of this Python, as `alembic …`, `python -m alembic
    …` and `uv run alembic …` do: any other is a command like others.
    """
    name, colon, ini = spec.partition(":")
    if name == "alembic" and (colon or spec == name) and not re.search(r"\s", name):
        return Tool("alembic", (*(("-c", ini) if ini else ()), "upgrade", "heads"))
    try:
        words = shlex.split(spec)
    except ValueError:
        return None
    if words[1:2] == ["run"] and words[0] in _RUNNERS:
        words = words[2:]
    if words and (_PYTHON.fullmatch(words[0]) or words[0] == sys.executable):
        words = words[2:] if words[1:2] == ["-m"] else words[1:]
    if words[:1] == ["alembic"] and "upgrade" in words and "--sql" not in words:
        return Tool("alembic", tuple(words[1:]))
    if (
        words[:1] == ["flask"]
        and "upgrade" in words[words.index("db") if "db" in words else len(words) :]
        and "--sql" not in words
    ):
        return Tool("flask", tuple(words[1:]))
    if words[1:2] == ["migrate"] and Path(words[0]).name == "manage.py":
        return Tool("django", tuple(words[1:]), words[0])
    return None


def option(words: tuple[str, ...], *names: str) -> list[str]:
    """Return the values of an option on a command line, however it is spelled: `-c x`, `--config
    x`, `--config=x`, `-cx`."""
    found: list[str] = []
    for number, word in enumerate(words):
        for name in names:
            if word == name:
                found += words[number + 1 : number + 2]
            elif word.startswith(f"{name}=" if name.startswith("--") else name):
                found.append(word[len(name) :].lstrip("="))
    return found


@dataclass(frozen=True)
class Migrations:
    """Migrations run by a tool that is known by name: a schema."""

    runs_code: ClassVar[bool] = True  # of the project, which may connect to another database
    settings: Settings = field(repr=False)
    spec: str
    tool: Tool

    def manifest(self) -> Mapping[str, str]:
        """Return the digests of the tool's files. Raises SettingsError if its configuration is not
        there."""
        own = {"alembic": self._alembic, "flask": self._flask, "django": self._django}[
            self.tool.name
        ]
        files = [path for place in own() for path in _files(place)]
        if not files:
            raise self._absent(
                "there are no migrations", "Name the folder that they are in by inputs."
            )
        files += find_files(self.settings, "inputs", self.settings.inputs or ())
        line = " ".join((self.tool.name, *self.tool.arguments))
        return {
            encodable(f"migrations {mask_any(line)}"): digest(line.encode(errors="replace")),
            **file_entries(self.settings, dict.fromkeys(files)),
        }

    def _absent(self, problem: str, hint: str) -> errors.SettingsError:
        return self.settings.error("schema", problem, hint)

    @property
    def folder(self) -> Path:
        """The folder to run in: the project's root, or that of alembic.ini if its relative
        script_location is only there."""
        root = self.settings.root
        if self.tool.name == "alembic":
            ini, section = self._configuration()
            place = section.get("script_location", "")
            if (
                place
                and not (root / place / "env.py").is_file()
                and (ini.parent / place / "env.py").is_file()
            ):
                return ini.parent
        return root

    def _configuration(self) -> tuple[Path, Mapping[str, str]]:
        """Return Alembic's configuration: the file that was found, and its options, those of a
        pyproject.toml included.

        Read without Alembic ("Tutorial", alembic.sqlalchemy.org), because that takes longer to
        import than a whole run to start.
        """
        root, words = self.settings.root, self.tool.arguments
        named = option(words, "-c", "--config") or [
            os.environ.get("ALEMBIC_CONFIG") or "alembic.ini"
        ]
        candidates = [
            root / name for name in [*named, *([] if len(named) > 1 else ["pyproject.toml"])]
        ]
        options: dict[str, str] = {}
        found = None
        for path in candidates:
            here = {"here": str(path.parent)}
            part = (
                _of_toml(path, here) if path.name == "pyproject.toml" else self._of_ini(path, here)
            )
            if part is not None:
                options, found = {**part, **options}, found or path
        if found is None:
            raise self._absent(
                f"there is no {named[0]} with a section for alembic",
                'Name it: schema = "alembic:path/alembic.ini". Paths are relative to ' + f"{root}.",
            )
        return found, options

    def _of_ini(self, path: Path, here: dict[str, str]) -> dict[str, str] | None:
        parser = configparser.ConfigParser(here, interpolation=None)
        try:
            if not parser.read(path, encoding="utf-8"):
                return None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise self._absent(
                f"{path} cannot be read: {mask_any(str(error))}", "Correct the file."
            ) from None
        section = (option(self.tool.arguments, "-n", "--name") or ["alembic"])[0]
        if not parser.has_section(section):
            return None
        return {
            key: value.replace("%(here)s", here["here"]).replace("%%", "%")
            for key, value in parser.items(section)
        }

    def _alembic(self) -> Iterator[Path]:
        """Yield alembic.ini (or pyproject.toml), the folder of the scripts with env.py, and each
        folder of versions."""
        ini, options = self._configuration()
        yield ini
        places = [options.get("script_location", ""), *_locations(options)]
        if not places[0]:
            raise self._absent(
                f"{ini.name} has no script_location", "Add it, or name the right file."
            )
        for place in places:
            yield from self._resolved(place, ini.name)

    def _resolved(self, place: str, source: str) -> Iterator[Path]:
        """Yield a folder that Alembic's configuration names by its path, or by `package:folder`."""
        package, colon, rest = place.partition(":")
        if colon and re.fullmatch(r"[A-Za-z_][\w.]*", package) and not os.path.isabs(place):
            tails = [Path(*package.split("."), rest)]
            found = [
                base / tail
                for base in (self.folder, self.folder / "src")
                for tail in tails
                if (base / tail).is_dir()
            ]
            yield from found[:1]  # a package elsewhere is an installed one
            return
        if not (self.folder / place).is_dir():
            raise self._absent(
                f"{source} names {place}, which is no folder",
                f"Paths are relative to {self.folder}.",
            )
        yield self.folder / place

    def _flask(self) -> Iterator[Path]:
        """Yield the folder of Flask-Migrate."""
        yield from self._resolved(
            (option(self.tool.arguments, "-d", "--directory") or ["migrations"])[0], "flask db"
        )

    def _django(self) -> Iterator[Path]:
        """Yield manage.py, the modules of settings, and each folder of migrations below
        manage.py's."""
        script = self.settings.root / self.tool.script
        if not script.is_file():
            raise self._absent(
                f"there is no {self.tool.script}", f"Paths are relative to {self.settings.root}."
            )
        yield script
        for folder, names, files in os.walk(script.parent):
            foreign = {"node_modules", "__pycache__", "site-packages"}
            foreign |= {
                name for name in names if os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
            }
            names[:] = sorted(
                name for name in names if name not in foreign and not name.startswith(".")
            )
            here = Path(folder)
            if here.name == "migrations" and "__init__.py" in files:
                yield here
                names.clear()
            elif here.name == "settings":
                yield from (here / name for name in sorted(files) if name.endswith(".py"))
            else:
                yield from (
                    here / name
                    for name in sorted(files)
                    if re.fullmatch(r"settings(_\w+)?\.py", name)
                )

    @redacting
    def build(self, url: str, progress: Progress) -> None:
        """Run the migrations in a process of its own. Raises BuildFailed, and SettingsError if the
        tool is not installed."""
        __tracebackhide__ = True  # from pytest, which shows variables
        line = " ".join([self.tool.script or self.tool.name, *map(mask_any, self.tool.arguments)])
        run_nothing_unasked(self.settings)
        progress(f"running {line}")
        dsn = parse(url)
        arguments, folder = list(self.tool.arguments), self.folder
        if (
            folder != self.settings.root
        ):  # where the names of alembic.ini and pyproject.toml do not lead
            named = option(self.tool.arguments, "-c", "--config")
            arguments = [
                word.replace(name, str(self.settings.root / name))
                for word in arguments
                for name in named[:1]
            ]
        # The URL goes through a pipe: arguments of a process can be read by others.
        job = {
            **{"tool": self.tool.name, "arguments": arguments, "script": self.tool.script},
            **{"url": str(url), "root": str(self.settings.root)},
        }
        parent = str(Path(errors.__file__).parent.parent)
        with program_environment(self.settings, dsn) as environ:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD.format(parent)],
                cwd=folder,
                env=environ,
                input=json.dumps(job).encode(),
                capture_output=True,
            )
        output = output_tail(dsn, done.stderr)
        answer: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            answer = json.loads(
                done.stdout.decode(errors="replace").strip().rpartition("\n")[2] or "{}"
            )
        if answer.get("ok"):
            return
        if "error" in answer:
            kind = getattr(errors, answer["error"])
            detail = (
                answer["detail"]
                if answer["said"]
                else f"{answer['detail']}\nIt printed:\n{output}".strip()
            )
            raise kind(
                *(mask_any(dsn.mask(text)) for text in (answer["message"], detail, answer["hint"]))
            )
        raise BuildFailed(
            f"the migrations ended with exit status {done.returncode}: {line}",
            f"It printed:\n{output}",
            "Correct them; no template was left behind.",
        )


def _files(place: Path) -> list[Path]:
    """Return a file, or the files below a folder that a tool reads."""
    if place.is_file():
        return [place]
    return sorted(
        path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def _of_toml(path: Path, here: dict[str, str]) -> dict[str, str] | None:
    """Return the options of Alembic in a pyproject.toml (Alembic 1.16 and later), lists as lines;
    None if it has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if "tool.alembic" not in text:
        return None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(text).get("tool", {}).get("alembic")
    except tomllib.TOMLDecodeError:  # for Alembic to say
        return None
    if not isinstance(table, dict):
        return None
    found = {
        key: "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in table.items()
    }
    return {
        key: value.replace("%(here)s", here["here"]).replace("%%", "%")
        for key, value in found.items()
    } | {"path_separator": "newline"}


def _locations(options: Mapping[str, str]) -> list[str]:
    """Return the folders of `version_locations`, which several settings say how to part."""
    text = options.get("version_locations", "")
    parted = options.get("path_separator") or options.get("version_path_separator") or ""
    separators = {"os": re.escape(os.pathsep), "space": r"\s", "newline": r"\n", ":": ":", ";": ";"}
    return [
        place.strip() for place in re.split(separators.get(parted, r"[,\s]"), text) if place.strip()
    ]
