"""python -m benchmarks.peers: measure, print the tables, and write the JSON if it is wanted."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from dbclone.server.server import Server
from dbclone.settings import load

from . import METHOD, run
from .table import lines


def _say(text: str) -> None:
    """Show progress on stderr: in one line to a person who watches."""
    watched = sys.stderr.isatty()
    print(
        f"\r\x1b[K{text}" if watched else text,
        end="" if watched else "\n",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=METHOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="few tests and runs: to see that it works"
    )
    parser.add_argument(
        "--server",
        default="embedded",
        metavar="URL",
        help="of a superuser, instead of a private server",
    )
    parser.add_argument(
        "--binaries",
        default="",
        metavar="FOLDER",
        help="of initdb and postgres for the private server",
    )
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="FOLDER",
        help="where packages are installed (default: a temporary folder)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # what leads libpq elsewhere
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    with contextlib.ExitStack() as stack:
        url = arguments.server
        if url == "embedded":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = {
                "cache_dir": str(folder / "cache"),
                "name": "peers",
                "binaries": arguments.binaries,
            }
            server = stack.enter_context(Server.open(load(folder, options, {})))
            assert server.embedded is not None
            for place in (server.embedded.home, server.embedded.disk):
                stack.callback(shutil.rmtree, place, ignore_errors=True)
            stack.callback(server.embedded.cluster.stop)
            url = server.dsn.url
        found = run(url, arguments.quick, _say, arguments.environments)
    _say("")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
