"""What a failed test left in its database, kept for a person: `--dbclone-keep-failed`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .clone import Clone
    from .isolation import Isolation

_FAILED = pytest.StashKey[bool]()


def add_option(group: Any) -> None:
    """Offer the option."""
    group.addoption(
        "--dbclone-keep-failed",
        type=_count,
        nargs="?",
        const=0,
        default=None,
        metavar="N",
        help="keep what failed tests left, in databases named after them: at most N, written with = (default: 5)",
    )


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000; write --dbclone-keep-failed=5")
    return int(text)


def noted(item: pytest.Item, report: pytest.TestReport) -> None:
    """Remember that a test failed, and say in its report where what it left will be, as soon as its fixtures have ended."""
    isolation: Isolation | None = getattr(item, "funcargs", {}).get("dbclone")
    if item.config.option.dbclone_keep_failed is None or not report.failed or report.when == "teardown" or isolation is None:
        return
    item.stash[_FAILED] = True
    worker: Clone | None = item.funcargs.get("dbclone_worker")  # type: ignore[attr-defined]
    if worker is None:
        return
    from .marks import kept_name

    name = kept_name(worker.mark.project, item.nodeid)
    dsn = worker.server.database(name).replace(password="")
    lines = ["What this test left is kept when its fixtures have ended. Look at it with:", f"    python -m dbclone psql {name}"]
    lines += [] if worker.server.embedded is not None else [f'    psql "{dsn.shown}"']
    report.sections.append(("dbclone", "\n".join(lines)))


def keep_if_failed(item: Any, isolation: Isolation) -> None:
    """Have what a test left kept if the test has failed and somebody asked for it."""
    if item.stash.get(_FAILED, False):
        isolation.keep(item.nodeid)
