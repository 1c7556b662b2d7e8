"""One frozen Settings from three places: pyproject.toml, then the environment, then options; each
value knows where it came from.

This is the only module that reads settings.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import Error, SettingsError, encodable, shown_cause
from .process import project
from .server.dsn import mask_any, parse

RESETS = ("auto", "rollback", "truncate", "clone", "drop", "none")
LEAKS = ("fail", "terminate")
COPY_METHODS = ("auto", "file_copy", "wal_log")
_ENV_PREFIX = "DBCLONE_"
# Set by dbclone itself or read elsewhere on purpose, so not settings.
_ENV_NOT_SETTINGS = {"DBCLONE_RUN"}
_TABLE = "[tool.dbclone]"  # how the source of what pyproject.toml says ends


def _setting(default: Any, help: str, choices: tuple[str, ...] = (), secret: bool = False) -> Any:
    return field(
        default=default,
        repr=not secret,
        metadata={"help": help, "choices": choices, "setting": True},
    )


@dataclass(frozen=True)
class Settings:
    """What to build, where, and how tests are isolated. `load` makes one; see the README for what
    each setting does.

    Attributes beyond the settings: `root`, the folder that relative paths and imports start from;
    `sources`, from the name of a setting to the place that its value came from (settings at their
    default are not in it); `looking`, whether a command only looks, and so runs no program that a
    repository names.
    """

    schema: tuple[str, ...] = _setting(
        (), "what goes into a template: module:object, SQL files by glob, or a command"
    )
    seed: str = _setting("", "module:callable taking the database URL, run after the schema")
    inputs: tuple[str, ...] | None = _setting(
        None, "files, by glob, that decide what the schema and the seed build"
    )
    bind: str = _setting(
        "", "module:object, the application's own database handle, pointed at the worker's clone"
    )
    role: str = _setting(
        "", "the role as whom the application connects to the clone (default: the one that builds)"
    )
    url: str = _setting(
        "",
        "an existing server; without it PG* variables, then a private server started here",
        secret=True,
    )
    env: tuple[str, ...] = _setting(
        ("DATABASE_URL",),
        "environment variables that are set to the clone's URL before the application loads",
    )
    name: str = _setting(
        "", "the project's name in database names (default: [project] name, or the folder's)"
    )
    reset: str = _setting("auto", "how a test's writes are undone", RESETS)
    autouse: bool = _setting(
        False, "isolate every test, not only those that ask for the dbclone fixture"
    )
    reset_sequences: bool = _setting(
        False, "under rollback, put sequences back too, so that ids start anew in each test"
    )
    keep: tuple[str, ...] = _setting((), "tables, by name or pattern, that no reset touches")
    strict: bool = _setting(
        False, "fail a test that committed where its rollback does not reach, instead of warning"
    )
    on_leak: str = _setting(
        "fail", "what to do with a session that is in the way of a reset", LEAKS
    )
    build_timeout: float = _setting(
        600.0, "seconds to wait for another process that builds the same template"
    )
    lock_timeout: float = _setting(5.0, "seconds to wait for a lock in a reset")
    connect_timeout: float = _setting(
        10.0, "seconds to wait for a connection or for a server to start"
    )
    clone_strategy: str = _setting("auto", "how the server copies a template", COPY_METHODS)
    clone_limit: int = _setting(
        4, "how many databases may be copied on one server at the same time"
    )
    retain_templates: int = _setting(
        3, "how many templates of this project to keep, the current one included"
    )
    retain_days: float = _setting(14.0, "days after which a template that nobody used is dropped")
    encoding: str = _setting("", "encoding of the template (default: the server's)")
    locale: str = _setting("", "locale of the template (default: the server's)")
    binaries: str = _setting("", "folder with initdb and postgres for the private server")
    data_dir: str = _setting(
        "",
        "folder for the private server's data (default: /dev/shm when it has room, else the cache)",
    )
    keep_server: bool = _setting(False, "leave the private server running after the last run")
    cache_dir: str = _setting(
        "", "folder for locks and the private server (default: the user's cache folder)"
    )

    looking: bool = field(default=False, metadata={"setting": False}, compare=False)
    root: Path = field(default_factory=Path.cwd, metadata={"setting": False})
    sources: Mapping[str, str] = field(
        default_factory=dict, metadata={"setting": False}, compare=False
    )

    def source(self, key: str) -> str:
        """Return where the value of setting `key` came from, in words."""
        return self.sources.get(key, "default")

    def of_repository(self, key: str) -> bool:
        """Return whether only a file of the repository says setting `key`, which its user may never
        have read."""
        return self.source(key).endswith(_TABLE)

    def path(self, key: str) -> Path:
        """Return the place that a setting such as `data_dir` names, absolute and without `..`; ~
        and variables stand for what they do in a shell, no link in it is followed."""
        text = os.path.expandvars(getattr(self, key))
        return Path(os.path.normpath(self.root / Path(text).expanduser()))

    @property
    def leads_outside(self) -> list[str]:
        """Which settings of the repository lead out of it, one line each, to be said before they
        are used."""
        return [
            f"{key} = {getattr(self, key)!r} leads outside the project: {self.path(key)},"
            f" says {self.source(key)}"
            for key in ("binaries", "data_dir", "cache_dir")
            if getattr(self, key)
            and self.of_repository(key)
            and not Path(os.path.realpath(self.path(key))).is_relative_to(
                os.path.realpath(self.root)
            )
        ]

    @property
    def server(self) -> str:
        """Which server is meant, in words and without its password, so that a wrong one is seen
        before anything is done there."""
        if not self.url:
            variables = any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"))
            return "server from PG variables" if variables else "private server"
        try:
            return f"server {parse(self.url, 'url').shown} from {self.source('url')}"
        except SettingsError:  # which whoever opens the server will raise
            return f"server from {self.source('url')}"

    @cached_property
    def cache(self) -> Path:
        """The folder for locks and state, following the platform's convention unless `cache_dir`
        says otherwise."""
        if self.cache_dir:
            return self.path("cache_dir")
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = str(Path.home() / "Library" / "Caches")
        else:
            base = os.environ.get("XDG_CACHE_HOME", "")
            if not os.path.isabs(base):  # which the XDG Base Directory Specification says to ignore
                base = str(Path.home() / ".cache")
        return Path(base) / "dbclone"

    @cached_property
    def project(self) -> str:
        """The project's name: the setting, else the folder's, of which bytes that are no text are
        written as escapes."""
        return encodable(self.name or self.root.name or "project")

    def error(self, key: str, problem: str, hint: str, detail: str = "") -> SettingsError:
        """Return a SettingsError that quotes a setting, its value and where it came from."""
        value = getattr(self, key)
        shown = (
            "" if key == "url" else f" = {value if not isinstance(value, tuple) else list(value)!r}"
        )
        return SettingsError(
            mask_any(f"{key}{shown}: {problem}"),
            f"The value comes from {self.source(key)}." + (f" {detail}" if detail else ""),
            hint,
        )

    def load_object(self, key: str, spec: str) -> Any:
        """Import `module:attribute` named by setting `key`, with the project's root importable.

        Raises SettingsError with the nearest name if either half does not exist. An error raised by
        the module itself is the project's, and passes through as the cause.
        """
        module_name, _, path = spec.partition(":")
        for folder in (self.root, self.root / "src"):
            if folder.is_dir() and str(folder) not in sys.path:
                sys.path.append(str(folder))
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (
                module_name == error.name or module_name.startswith(error.name + ".")
            ):
                raise self.error(
                    key,
                    f"there is no module {error.name!r}",
                    f"Check the spelling, and that {error.name.split('.')[0]!r} can be"
                    f" imported from {self.root}.",
                ) from None
            raise self.error(
                key, f"importing {module_name!r} failed: {error}", "See the error above."
            ) from shown_cause(error, mask_any)
        except Error:
            raise
        except Exception as error:
            raise self.error(
                key,
                f"importing {module_name!r} raised {type(error).__name__}: {error}",
                "See the error above.",
            ) from shown_cause(error, mask_any)
        for part in path.split(".") if path else []:
            if not hasattr(found, part):
                near = difflib.get_close_matches(part, dir(found), 1)
                raise self.error(
                    key,
                    f"{module_name!r} has no {part!r}",
                    f"Did you mean {module_name}:{near[0]}?"
                    if near
                    else f"Define {part} in {module_name}.",
                )
            found = getattr(found, part)
        return found


_FIELDS = {f.name: f for f in fields(Settings) if f.metadata.get("setting")}


def describe() -> list[tuple[str, Any, str, tuple[str, ...]]]:
    """Return (name, default, help, choices) of every setting, for options and for the
    documentation's test."""
    return [
        (f.name, f.default, f.metadata["help"], f.metadata["choices"]) for f in _FIELDS.values()
    ]


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def _unknown(key: str, source: str, spell: str) -> SettingsError:
    near = difflib.get_close_matches(key, _FIELDS, 1, 0.5)
    return SettingsError(
        f"unknown setting {spell!r}",
        f"It comes from {source}.",
        f"Did you mean {near[0]!r}?" if near else f"The settings are: {', '.join(_FIELDS)}.",
    )


def _typed(key: str, value: Any, source: str) -> Any:
    """Return `value` as the type of setting `key`; text is parsed, because the environment and
    options have nothing else."""
    default, choices = _FIELDS[key].default, _FIELDS[key].metadata["choices"]

    def refuse(wanted: str) -> SettingsError:
        shown = "" if key == "url" else f" = {value!r}"
        return SettingsError(
            mask_any(f"{key}{shown} is not {wanted}"),
            f"The value comes from {source}.",
            f"Set {key} to {wanted}.",
        )

    if any(
        "\0" in item
        for item in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(item, str)
    ):
        raise refuse("text without NUL characters")
    if isinstance(default, bool):
        said = value.strip().lower() if isinstance(value, str) else None
        if said in _TRUE or said in _FALSE:
            return said in _TRUE
        if not isinstance(value, bool):
            raise refuse("true or false")
        return value
    if isinstance(default, (int, float)):
        try:
            number = type(default)(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if (
            number is None
            or not 0 <= number < 10**9
            or (isinstance(default, int) and float(value) != number)
        ):
            raise refuse(
                "a whole number, 0 or more" if isinstance(default, int) else "a number, 0 or more"
            )
        return max(number, 1) if isinstance(default, int) else number
    if default is None or isinstance(default, tuple):
        if isinstance(value, str):
            # One string stays one: a schema may be a command with spaces. Lists come from TOML, or
            # comma-separated text.
            value = [value] if key == "schema" else [part.strip() for part in value.split(",")]
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise refuse("a string or a list of strings")
        return tuple(item for item in value if item)
    if not isinstance(value, str):
        raise refuse("a string")
    if choices and value not in choices:
        near = difflib.get_close_matches(value, choices, 1, 0.4)
        error = refuse("one of " + ", ".join(choices))
        raise SettingsError(
            error.message, error.detail, f"Did you mean {near[0]!r}?" if near else error.hint
        )
    return value


def _pyproject(start: Path) -> tuple[Path, Mapping[str, Any], str] | None:
    """Return (root, the [tool.dbclone] table, the [project] name) of the project's nearest
    pyproject.toml that has that table.

    Raises SettingsError if another user of the machine can write it.
    """
    for path, text in project.tables(start):
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            data = tomllib.loads(text.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{path} cannot be parsed", str(error), "Correct the file."
            ) from None
        table = data.get("tool", {}).get("dbclone")
        if table is not None:
            if why := project.problem(path, start):
                raise SettingsError(
                    f"the settings in {path} are not used: {why}",
                    "Settings name commands that are run, so a file that another user of the"
                    " machine can write is not believed.",
                    f"If you know what is in it: chown it to whoever owns {start}, and chmod"
                    f" go-w {path}",
                )
            return path.parent, table, str(data.get("project", {}).get("name", ""))
    return None


def load(
    start: Path | None = None,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    prefix: str = "--",
) -> Settings:
    """Read all settings.

    Arguments: `start`, the folder to look for pyproject.toml from, upward (default: the current
    one); `options`, values given on a command line, None where not given; `environ`, default
    os.environ; `prefix`, how options begin there. Raises SettingsError.
    """
    start = (start or Path.cwd()).absolute()
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    root = start

    def put(items: Iterable[tuple[str, Any, str, str]]) -> None:
        for key, value, source, spell in items:
            if key not in _FIELDS:
                raise _unknown(key, source, spell)
            values[key], sources[key] = _typed(key, value, source), source

    found = _pyproject(start)
    if found is not None:
        root, table, called = found
        if not isinstance(table, dict):
            raise SettingsError(
                "tool.dbclone is not a table",
                f"It is in {root / 'pyproject.toml'}.",
                "Write [tool.dbclone].",
            )
        if called:
            values["name"], sources["name"] = called, "[project] name"
        put(
            (key, value, f"{root / 'pyproject.toml'} {_TABLE}", key) for key, value in table.items()
        )
    put(
        (key[len(_ENV_PREFIX) :].lower(), value, f"the environment variable {key}", key)
        for key, value in environ.items()
        if key.startswith(_ENV_PREFIX) and key not in _ENV_NOT_SETTINGS
    )
    given = {key: value for key, value in (options or {}).items() if value is not None}
    put(
        (key, value, f"the option {prefix}{key.replace('_', '-')}", key)
        for key, value in given.items()
    )
    return Settings(**values, root=root, sources=sources)
