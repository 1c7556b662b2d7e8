"""What is undone, established by doing it: for each probe one test that does the thing, and the
next that looks.

Each probe has tables of its own, so that what one of them leaves does not spoil another. Written
down are: was all as in a fresh database before, did the deed have an effect that could be seen
within its test, and was all as in a fresh database in the next.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import MARKS

pytestmark = MARKS
LOCK = 4711


@dataclass(frozen=True)
class Probe:
    """`deeds`, statements that the test runs and commits; `elsewhere`, over a second connection;
    `look`, a query whose value, in a fresh database, is `fresh`."""

    deeds: tuple[str, ...]
    look: str
    fresh: Any
    elsewhere: bool = False

    def do(self, handle: Any) -> None:
        if self.elsewhere:
            with handle.second() as connection:
                for deed in self.deeds:
                    connection.execute(deed)
            return
        with handle.transaction():
            for deed in self.deeds:
                handle.execute(deed)

    def clean(self, handle: Any) -> bool:
        """Whether the database and the session are as in the beginning, as the test sees them."""
        ((found,),) = handle.execute(self.look)
        return bool(found == self.fresh)


def _seeds(table: str) -> str:
    return f"SELECT string_agg(code || ' ' || name, ', ' ORDER BY code) FROM {table}"  # constants of this file


PROBES = {
    "committed rows": Probe(
        ("INSERT INTO category (name) VALUES ('left')",), "SELECT count(*) FROM category", 0
    ),
    "rows of a second connection": Probe(
        ("INSERT INTO role (name) VALUES ('left')",), "SELECT count(*) FROM role", 0, True
    ),
    "sequences": Probe(
        ("INSERT INTO \"user\" (username, email) VALUES ('left', 'left')",),
        "SELECT last_value || ' ' || is_called FROM user_id_seq",
        "1 false",
    ),
    "rows added to seeds": Probe(
        ("INSERT INTO country VALUES ('es', 'Spain')",),
        _seeds("country"),
        "de Germany, fr France, it Italy",
    ),
    "changed seeds": Probe(
        ("UPDATE currency SET name = 'changed' WHERE code = 'GBP'",),
        _seeds("currency"),
        "EUR Euro, GBP Pound, SEK Krona",
    ),
    "deleted seeds": Probe(
        ("DELETE FROM unit WHERE code = 'm'",), _seeds("unit"), "g Gram, m Metre, s Second"
    ),
    "DDL": Probe(
        ("ALTER TABLE payment ADD COLUMN added int",),
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'payment'::regclass AND attname"
        " = 'added'",
        0,
    ),
    "DDL of a second connection": Probe(
        ("CREATE TABLE added (id int)",),
        "SELECT count(*) FROM pg_class WHERE relname = 'added'",
        0,
        True,
    ),
    "large objects": Probe(
        ("SELECT lo_from_bytea(0, 'left')",), "SELECT count(*) FROM pg_largeobject_metadata", 0
    ),
    "SET": Probe(
        ("SET work_mem = '12345kB'",), "SELECT current_setting('work_mem') <> '12345kB'", True
    ),
    "advisory locks": Probe(
        (f"SELECT pg_advisory_lock({LOCK})",),
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND"
        f" d.datname = current_database() WHERE locktype = 'advisory' AND objid = {LOCK}",
        0,
    ),
    "temporary tables": Probe(
        ("CREATE TEMPORARY TABLE scratch (id int)",),
        "SELECT to_regclass('pg_temp.scratch') IS NULL",
        True,
    ),
    "prepared statements": Probe(
        ("PREPARE left_behind AS SELECT 1",),
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind'",
        0,
    ),
    "LISTEN": Probe(("LISTEN shop",), "SELECT count(*) FROM pg_listening_channels()", 0),
}
_found: dict[str, dict[str, Any]] = {}


@contextlib.contextmanager
def _noting(name: str) -> Any:
    """Yield what is written down of a probe, and write down what goes wrong."""
    noted = _found.setdefault(name, {})
    try:
        yield noted
    except Exception as error:
        noted["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise
    finally:
        Path(os.environ["PEERS_PROBED"]).write_text(json.dumps(_found))


@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name in PROBES for step in ("does", "looks")]
)
def test_probe(handle: Any, name: str, step: str) -> None:
    probe = PROBES[name]
    with _noting(name) as noted:
        if step == "does":
            noted["before"] = probe.clean(handle)
            probe.do(handle)
            noted["seen"] = not probe.clean(handle)
        else:
            noted["after"] = probe.clean(handle)


def _commit_is_seen(handle: Any) -> bool:
    with handle.transaction():
        handle.execute("INSERT INTO role (name) VALUES ('seen')")
    with handle.second() as connection:
        return connection.execute("SELECT count(*) FROM role WHERE name = 'seen'").fetchall() == [
            (1,)
        ]


def _notification_arrives(handle: Any) -> bool:
    """Notifications arrive in the order of commits: the second one says that the first will not
    come any more."""
    found: list[str] = []
    with handle.second() as connection:
        connection.add_notify_handler(lambda notify: found.append(notify.payload))
        connection.execute("LISTEN shop")
        with handle.transaction():
            handle.execute("NOTIFY shop, 'first'")
        connection.execute("NOTIFY shop, 'second'")
    assert "second" in found
    return "first" in found


ALLOWED: dict[str, Callable[[Any], bool]] = {
    "a second connection sees commits": _commit_is_seen,
    "notifications are delivered": _notification_arrives,
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allows(handle: Any, name: str) -> None:
    with _noting(name) as noted:
        noted["allowed"] = ALLOWED[name](handle)
