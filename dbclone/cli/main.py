"""The commands of `python -m dbclone`, one function each; what they do is decided elsewhere."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapters import handles
from ..clone.report import template_line
from ..databases import ddl
from ..databases.copying import warm
from ..databases.prune import prune as prune_databases
from ..errors import Error, ServerNotFound, SettingsError, printable
from ..server.private.embedded import Embedded
from ..server.reconnect import translate_lost_connection
from ..server.server import Server, external
from ..settings import Settings, describe, load
from ..template.template import Template
from .progress import on_terminal, say
from .scratch import scratch, temporary_scratch
from .status import running, status
from .stopping import stop


def prepare(arguments: argparse.Namespace, settings: Settings) -> int:
    """Build the template if it is not there, and warm clones for the workers to come."""
    schema, handle = handles.load(settings)
    with Server.open(settings) as server:
        with on_terminal() as progress:
            template = Template.ensure(server, schema, handle, arguments.rebuild, progress)
        dropped = [d.name for d, _ in prune_databases(server, template.name)]
        made = warm(server, template.database, arguments.workers)
        facts = {
            "template": template.name, "built": template.built,
            "seconds": round(template.seconds, 4), "why": list(template.why),
            "notes": list(template.notes), "server": server.where, "version": server.version,
            "warm_clones_made": made, "dropped": dropped,
        }  # fmt: skip
        lines = [template_line(template.name, template.built, template.seconds, template.why)]
        lines += template.notes
        lines += [f"{made} warm clone{'s' if made != 1 else ''} made"] if arguments.workers else []
        lines += [f"dropped {name}" for name in dropped]
        say(arguments, facts, lines)
    return 0


def prune(arguments: argparse.Namespace, settings: Settings) -> int:
    """Drop what no living owner holds."""
    server = running(settings)
    if server is None:
        say(arguments, {"dropped": []}, ["the private server is not running; nothing to do"])
        return 0
    with server, translate_lost_connection(server, "leftovers were dropped"):
        done = prune_databases(
            server, everything=arguments.all, dry_run=arguments.dry_run, sizes=True
        )
        word = "would drop" if arguments.dry_run else "dropped"
        lines = [f"{word} {d.name} ({d.bytes / 2**20:.1f} MB): {why}" for d, why in done] or [
            "nothing to drop"
        ]
        others = {
            d.name: d.problem(server.facts.system)
            for d in ddl.list_databases(server)
            if d.own and d.other_format
        }
        lines += [
            f"left alone {name}: {why}; that version's own prune drops it"
            for name, why in others.items()
        ]
        facts = {
            "dry_run": arguments.dry_run,
            "dropped": [{"name": d.name, "reason": why, "bytes": d.bytes} for d, why in done],
            "left_alone": others,
        }
        say(arguments, facts, lines)
    return 0


def url(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print the URL of a database that dbclone made, or of a new scratch clone."""
    with Server.open(settings) as server:
        name = scratch(server, settings, arguments.database)
        if server.embedded is not None:
            server.embedded.keep(True)
        found = server.database(name).url
        say(arguments, {"name": name, "url": found}, [found])
        if not arguments.database:
            print(f"dbclone: {name} stays until: python -m dbclone prune --all", file=sys.stderr)
        if server.embedded is not None:
            print(
                "dbclone: the private server stays until: python -m dbclone server stop",
                file=sys.stderr,
            )
    return 0


def psql(arguments: argparse.Namespace, settings: Settings) -> int:
    """Open psql in a database that dbclone made, or in a scratch clone, which is dropped then."""
    from ..server.dsn import child_environment

    with Server.open(settings) as server:
        # Not from a copy that was made for the server's account, which could change it.
        beside = (
            Embedded.locate(settings).cluster.binaries.folder / "psql" if server.embedded else None
        )
        program = str(beside) if beside is not None and beside.is_file() else shutil.which("psql")
        if program is None:
            raise SettingsError(
                "there is no psql on this machine",
                "It is not on PATH.",
                "Install PostgreSQL's client programs.",
            )
        with temporary_scratch(server, settings, arguments.database) as name:
            environ = child_environment(server.database(name), os.environ)
            return subprocess.run([program, *arguments.arguments], env=environ).returncode


def server(arguments: argparse.Namespace, settings: Settings) -> int:
    """Start, stop or describe the private server."""
    if external(settings) is not None:
        raise SettingsError(
            "this project uses a running server, not a private one",
            f"url comes from {settings.source('url')}.",
            "Unset url and PGHOST first.",
        )
    located = Embedded.locate(settings)
    cluster = located.cluster
    action, pid = arguments.action, cluster.pid()
    if action == "start":
        with Server.open(settings) as opened:
            assert opened.embedded is not None
            opened.embedded.keep(True)
            located, cluster = opened.embedded, opened.embedded.cluster
            pid = cluster.pid()
    elif action == "stop":
        stop(settings, located, arguments.force)
        pid = None
    facts = {
        "running": pid is not None, "pid": pid, "kept": located.is_kept(),
        "version": cluster.binaries.version, "folder": str(cluster.folder),
        "binaries": str(cluster.binaries.folder), "found_by": cluster.binaries.source,
        "url": located.dsn.url,
    }  # fmt: skip
    state = f"running (process {pid})" if pid is not None else "not running"
    lines = [
        f"private server: {state}, PostgreSQL {cluster.binaries.version} from"
        f" {cluster.binaries.source}",
        f"data: {cluster.folder}",
    ]
    say(arguments, facts, [*lines, f"url: {located.dsn.url}"] if pid is not None else lines)
    return 0 if action != "status" or pid is not None else 1


def verify(arguments: argparse.Namespace, settings: Settings) -> int:
    """Rebuild the schema beside the cached template and show any difference."""
    from . import checking  # which no other command should wait for

    return checking.verify(arguments, settings)


def doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    """Say what will fail or is slow on this server, measured."""
    from . import checking

    return checking.doctor(arguments, settings)


def demo(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the bundled sample suite."""
    import importlib.util

    missing = [
        name
        for name in ("flask", "peewee", "pytest", "xdist")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SettingsError(
            f"the demo needs {', '.join(missing)}",
            "They are not installed.",
            'Run: pip install "pytest-dbclone[demo]"',
        )
    folder = Path(__file__).parent.parent / "demo"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(folder / "pyproject.toml"),
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
    ]
    command += ["-n", str(arguments.workers), str(folder / "tests"), *arguments.arguments]
    # What was said on this command line goes to the sample; this project's own settings do not.
    given = {
        f"DBCLONE_{k.upper()}": str(v)
        for k, v in vars(arguments).items()
        if k in settings.sources and v is not None
    }
    # The sample is a package of the library that runs it: the one we are, which in a checkout is
    # not the installed one.
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH")])
    )
    environ = {**os.environ, **given, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=environ, cwd=folder).returncode


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print facts as JSON")
    group = common.add_argument_group("settings", "override [tool.dbclone] and DBCLONE_… variables")
    for name, default, text, choices in describe():
        shown_default = (
            ""
            if default in ("", (), None)
            else f" (default: {', '.join(default) if isinstance(default, tuple) else default})"
        )
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar="VALUE",
            help=text + shown_default,
            choices=choices or None,
        )
    parser = argparse.ArgumentParser(
        prog="python -m dbclone",
        description="Every test its own Postgres state, at next to no cost.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function: Any, **keywords: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, parents=[common], help=function.__doc__, description=function.__doc__, **keywords
        )
        command.set_defaults(function=function)
        return command

    command = add("prepare", prepare)
    command.add_argument(
        "--workers", type=_count, default=0, metavar="N", help="how many warm clones to have ready"
    )
    command.add_argument(
        "--rebuild", action="store_true", help="build the template even if it is there"
    )
    add("status", status).add_argument(
        "--manifest", action="store_true", help="show what each template was built from"
    )
    command = add("prune", prune)
    command.add_argument("--dry-run", action="store_true", help="only say what would be dropped")
    command.add_argument(
        "--all",
        action="store_true",
        help="also templates, warm, scratch and kept clones that no living run uses",
    )
    add("url", url).add_argument(
        "database",
        nargs="?",
        metavar="NAME",
        default="",
        help="a database that dbclone made (default: a new scratch clone)",
    )
    command = add("psql", psql, epilog="Arguments after -- go to psql.")
    command.add_argument(
        "database",
        nargs="?",
        metavar="NAME",
        default="",
        help="a database that dbclone made (default: a scratch clone)",
    )
    command = add("server", server)
    command.add_argument("action", choices=("start", "stop", "status"))
    command.add_argument(
        "--force",
        action="store_true",
        help="stop it even if somebody uses it: their sessions end with it",
    )
    command = add("doctor", doctor)
    command.add_argument(
        "--workers",
        type=_count,
        default=0,
        metavar="N",
        help="for how many workers (default: one per CPU)",
    )
    command.add_argument(
        "--no-measures", action="store_true", help="make no scratch databases to measure in"
    )
    add("verify", verify).add_argument(
        "--allow-unsteady",
        action="store_true",
        help="exit 0 if all that differs also differs between two builds made just now",
    )
    command = add("demo", demo, epilog="Arguments after -- go to pytest.")
    command.add_argument(
        "--workers", type=_count, default=2, metavar="N", help="pytest-xdist workers (default: 2)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1000")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 only when what was asked is so."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that this terminal cannot print is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    rest: list[str] = []
    if "--" in words:
        words, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    parsed = _parser().parse_args(words)
    parsed.arguments = rest
    if parsed.command in ("psql", "demo") or not rest:
        options = {name: getattr(parsed, name) for name, *_ in describe()}
        try:
            settings = replace(
                load(options=options), looking=parsed.command in ("status", "doctor", "url")
            )
            for line in settings.leads_outside:
                print(f"dbclone: {printable(line)}", file=sys.stderr)
            return int(parsed.function(parsed, settings))
        except Error as error:
            print(f"dbclone.{type(error).__name__}: {error}", file=sys.stderr)
            return 1 if not isinstance(error, (SettingsError, ServerNotFound)) else 2
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    print(f"python -m dbclone {parsed.command} takes nothing after --", file=sys.stderr)
    return 2
