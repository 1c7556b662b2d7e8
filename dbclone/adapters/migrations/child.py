"""The process in which a migration tool runs: it gets its job as JSON on its standard input, and
answers so on its standard output.

The answer is the last line: `{"ok": true}`, or an error of ours in its parts. What the tool prints
goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from ...errors import BuildFailed, Error, SettingsError, safe_str
from ...server.dsn import Dsn, parse
from .guard import Guard


def main() -> None:
    """Do the job, and exit with 0 if the migrations ran."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    job = json.loads(sys.stdin.buffer.read())
    error = _error(job)
    if error is None:
        reply: dict[str, Any] = {"ok": True}
    else:
        # An error raised by the guard says all; of one that the project raised, what the tool had
        # printed tells more.
        reply = {
            **{"error": type(error).__name__, "message": error.message, "detail": error.detail},
            **{"hint": error.hint, "said": error.__cause__ is None},
        }
    answer.write(json.dumps(reply))
    answer.flush()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(
        0 if error is None else 1
    )  # no thread and no exit handler of the project has a say any more


def _error(job: dict[str, Any]) -> Error | None:
    """Run the tool; return what went wrong as an error of ours."""
    dsn, root = parse(job["url"]), Path(job["root"])
    try:
        _run(job["tool"], tuple(job["arguments"]), job["script"], dsn, root)
    except SystemExit as error:
        if error.code in (None, 0):
            return None
        return (
            _failed(job, error, root)
            if not isinstance(error.__context__, Error)
            else error.__context__
        )
    except BaseException as error:
        return next(
            (found for found in _chain(error) if isinstance(found, Error)), None
        ) or _failed(job, error, root)
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _failed(job: dict[str, Any], error: BaseException, root: Path) -> BuildFailed:
    """Return what the migrations raised, with the last line of the project's own that it passed."""
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if Path(f.filename).is_relative_to(root) and "site-packages" not in f.filename
    ]
    where = (
        f"It was raised at {own[-1].filename}:{own[-1].lineno} in {own[-1].name}: {own[-1].line}"
        if own
        else ""
    )
    first = (safe_str(error).splitlines() or [""])[0]
    made = BuildFailed(
        f"{job['script'] or job['tool']} raised {type(error).__name__}: {first}",
        where,
        "Correct it; no template was left behind.",
    )
    made.__cause__ = error
    return made


def _run(tool: str, arguments: tuple[str, ...], script: str, dsn: Dsn, root: Path) -> None:
    """Run one tool under the guard. The libraries come before the project, whose folders may have
    names like theirs."""
    guard = Guard(dsn)
    guard.watch_drivers()
    _installed(tool)
    sys.path += [str(folder) for folder in (root, root / "src") if folder.is_dir()]
    if tool == "django":
        path = (root / script).resolve()
        from . import django

        django.lead(guard)
        sys.argv = [
            str(path),
            *arguments,
            *([] if {"--noinput", "--no-input"} & set(arguments) else ["--noinput"]),
        ]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
        return
    from . import sqlalchemy

    sqlalchemy.lead(guard)
    if tool == "flask":
        sys.argv = ["flask", *arguments]
        sys.path.insert(0, str(root))  # as `flask` does
        runpy.run_module("flask", run_name="__main__", alter_sys=True)
        return
    _alembic(arguments, dsn)


def _installed(tool: str) -> None:
    """Import the libraries of a tool. Raises SettingsError if one is not installed."""
    modules = {
        "alembic": ("alembic.config",),
        "django": ("django",),
        "flask": ("flask", "flask_migrate"),
    }[tool]
    try:
        for module in modules:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = {"flask_migrate": "Flask-Migrate"}.get(str(error.name), str(error.name))
        raise SettingsError(
            f"schema runs {tool}, and there is no module {str(error.name)!r}",
            f"It is not installed for {sys.executable}.",
            f"Run: pip install {name}",
        ) from None


def _alembic(arguments: tuple[str, ...], dsn: Dsn) -> None:
    """Run Alembic by the object behind its command line, with `sqlalchemy.url` set before env.py is
    read (`alembic.config`)."""
    from alembic.config import CommandLine, Config

    from .sqlalchemy import url

    class Led(CommandLine):
        def run_cmd(self, config: Config, options: Any) -> None:
            found = url(
                dsn,
                lambda: config.get_main_option("sqlalchemy.url"),
                lambda: os.environ["DATABASE_URL"],
            )
            config.set_main_option("sqlalchemy.url", found.replace("%", "%%"))
            super().run_cmd(config, options)

    Led(prog="alembic").main(["--raiseerr", *arguments])
