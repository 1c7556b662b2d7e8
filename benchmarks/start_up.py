"""What a session pays for dbclone before and after its tests.

Goal: second `prepare` on a running server ≤ 100 ms; a pytest session with one trivial test ≤ 100 ms with the server running and
≤ 350 ms with the server stopped; each beyond the control.
Control: the same process without dbclone: an interpreter that imports psycopg and peewee; a pytest session whose one test imports
them.
Factors (do not change): whole processes, interleaved A B C A B C, byte code cached, a project with two peewee models.
Parameters: --runs, --json FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MODELS = """
from peewee import CharField, ForeignKeyField, Model, PostgresqlDatabase
db = PostgresqlDatabase(None, prefer_psycopg3=True)
class User(Model):
    name = CharField(unique=True)
    class Meta: database = db
class Post(Model):
    user = ForeignKeyField(User)
    class Meta: database = db
MODELS = [User, Post]
"""


def main() -> None:
    """Run all contenders and print medians, extremes and differences from the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, bare = Path(place, "project"), Path(place, "bare")
        for path in (folder, bare):
            path.mkdir()
            (path / "models.py").write_text(MODELS)
        (folder / "pyproject.toml").write_text('[tool.dbclone]\nschema = "models:MODELS"\nbind = "models:db"\nname = "startup"\n')
        (folder / "test_it.py").write_text("import models\ndef test_it(dbclone):\n    assert models.User.select().count() == 0\n")
        (bare / "test_it.py").write_text("import psycopg, models\ndef test_it():\n    assert models.User\n")
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("DBCLONE_", "PG"))}
        environ |= {"DBCLONE_CACHE_DIR": str(Path(place, "cache")), "PYTHONPYCACHEPREFIX": str(Path(place, "pyc"))}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")

        def run(where: Path, *words: str) -> float:
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=where, env=environ, check=True, capture_output=True)
            return time.perf_counter() - started

        def dbclone(*words: str) -> None:
            run(folder, "-m", "dbclone", *words)

        dbclone("prepare")
        contenders: dict[str, tuple[Callable[[], object], Callable[[], float]]] = {
            "interpreter, psycopg and peewee (control)": (
                lambda: None,
                lambda: run(bare, "-c", "import psycopg, models, argparse, json"),
            ),
            "prepare, server stopped": (lambda: dbclone("server", "stop"), lambda: run(folder, "-m", "dbclone", "prepare")),
            "prepare, server running": (lambda: dbclone("server", "start"), lambda: run(folder, "-m", "dbclone", "prepare")),
            "pytest without dbclone's settings (control)": (lambda: None, lambda: run(bare, *pytest)),
            "pytest with the plugin switched off": (lambda: None, lambda: run(bare, *pytest, "-p", "no:dbclone")),
            "pytest, server stopped": (lambda: dbclone("server", "stop"), lambda: run(folder, *pytest)),
            "pytest, server running": (lambda: dbclone("server", "start"), lambda: run(folder, *pytest)),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(arguments.runs + 1):
            for name, (before, measured) in contenders.items():
                before()
                taken = measured()
                if number:  # the first round fills caches
                    times[name].append(taken * 1000)
        dbclone("server", "stop")
        dbclone("prune", "--all")
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, {arguments.runs} runs; ms")
    print(f"{'':46} {'median':>8} {'min':>8} {'max':>8} {'- control':>10}")
    for name, values in times.items():
        control = next(
            v
            for k, v in times.items()
            if "(control)" in k and k.split()[0] == ("pytest" if name.startswith("pytest") else "interpreter,")
        )
        beyond = statistics.median(a - b for a, b in zip(values, control, strict=True))
        print(f"{name:46} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f} {beyond:10.1f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(times, indent=2))


if __name__ == "__main__":
    main()
