"""python -m benchmarks: every part, or those that are named; what was measured goes into a JSON
file, part by part.

Then: python -m benchmarks.report FILE
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .pings import machine
from .places import EMBEDDED, Place, say

_PEERS = "peers"
# The module of each part, and its seconds at most if it can do less: in full, and quick. The suites
# come last, and take the rest.
PARTS: dict[str, tuple[str, int, int]] = {
    "start-up": ("start_up", 70, 30),
    "reset": ("resets", 110, 30),
    "clone": ("clones", 80, 30),
    "scale": ("scale", 100, 20),
    _PEERS: (_PEERS, 150, 20),
    "suites": ("suites", 600, 40),
}
MINUTES = 19.5  # for all parts together


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="where the figures go (default: standard output)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few and small, under two minutes: to see that it works",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="for all parts; more of them are more rounds (%(default)s)",
    )
    parser.add_argument(
        "--server",
        default=EMBEDDED,
        metavar="URL",
        help="an existing server instead of private ones",
    )
    parser.add_argument(
        "--binaries",
        default="",
        metavar="DIR",
        help="of initdb and postgres for the private servers",
    )
    found = parser.parse_args(words)
    if unknown := [part for part in found.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    found.parts = [part for part in PARTS if part in (found.parts or PARTS)]
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure the parts one after the other; one that fails does not keep the others from being
    measured. Returns how many did."""
    given = arguments(words)
    for name in [name for name in os.environ if name.startswith(("PG", "DBCLONE_"))]:
        del os.environ[name]  # what leads elsewhere
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    began = time.monotonic()
    found: dict[str, Any] = {
        "quick": given.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "parts": {},
    }
    for part in given.parts:
        name, most, quick = PARTS[part]
        seconds = (
            float(quick)
            if given.quick
            else given.minutes * 60 - (time.monotonic() - began)
            if part == "suites"
            else float(most)
        )
        say(f"{part}: at most about {seconds:.0f} s")
        try:
            for data in _measured(name, given, seconds):
                found["parts"][part] = data
        finally:  # also if we are told to end
            _write(found, given.json)
        found["load_at_end"] = machine()["load"]
    _write(found, given.json)
    failed = [part for part, data in found["parts"].items() if data.get("error")]
    say(
        f"{len(given.parts)} parts in {time.monotonic() - began:.0f} s"
        + (f", of which failed: {', '.join(failed)}" if failed else "")
    )
    if not given.json:
        print(json.dumps(found))
    return len(failed)


def _measure(name: str, place: Place) -> dict[str, Any]:
    """Run one part's module; the peers', which need a server, differ."""
    if name != _PEERS:
        return dict(importlib.import_module(f".{name}", __package__).measure(place))
    peers = importlib.import_module(f".{name}", __package__)
    with place.server() as server:
        return dict(peers.run(server.dsn.url, place.quick, say))


def _measured(name: str, given: argparse.Namespace, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what a part measured, how long it took, and what went wrong, if anything did; then
    whatever ends us, goes on."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        url = "" if given.server == EMBEDDED else given.server
        place = Place(Path(folder), given.quick, url, given.binaries, seconds)
        try:
            found = _measure(name, place)
        except BaseException as error:  # whatever it is, the other parts, and what this one has so far, are worth having
            say(traceback.format_exc())
            found = {**place.partial, "error": f"{type(error).__name__}: {error}".strip()}
            if not isinstance(error, Exception):
                yield {**found, "seconds": time.monotonic() - started}
                raise
    yield {**found, "seconds": time.monotonic() - started}


def _write(found: dict[str, Any], path: str | None) -> None:
    if path:
        new = Path(path).with_suffix(".new")
        new.write_text(json.dumps(found, indent=1) + "\n")
        new.replace(path)


if __name__ == "__main__":
    sys.exit(main())
