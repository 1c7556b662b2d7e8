"""One worker of the benchmark of scale: a process with a clone of its own, which runs tests when it
is told to.

Reads JSON lines: first what to do, then one line per round; writes one line when it is ready, and
one per round.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from dbclone.server.server import Server
from dbclone.settings import load
from dbclone.template.template import Template

from .shop import Shop, inserts


def main() -> None:
    """Clone, say so, and run tests; a test writes to three tables, and finds them empty or fails."""
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    shop = Shop(told["tables"])
    with Server.open(load(Path(told["folder"]), told["options"], {})) as server:
        template = Template.ensure(server, shop)
        started = time.perf_counter()
        with template.clone(told["owner"]) as clone, contextlib.ExitStack() as stack:
            _say({"clone_s": time.perf_counter() - started})
            kept = None
            for line in sys.stdin:
                reset, seconds = json.loads(line)
                if reset == "truncate" and kept is None:
                    kept = stack.enter_context(
                        contextlib.closing(psycopg.connect(clone.url, autocommit=True))
                    )
                taken: list[float] = []
                began = time.perf_counter()
                while time.perf_counter() - began < seconds or not taken:
                    started = time.perf_counter()
                    with clone.isolated(reset, "test") as isolation:
                        connection = (
                            kept
                            if reset == "truncate" and kept is not None
                            else isolation.connect(autocommit=True)
                        )
                        inserts(shop, connection, reset == "truncate")
                    taken.append(time.perf_counter() - started)
                _say({"times": taken, "seconds": time.perf_counter() - began})


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
