"""The promise that matters most, for any schema and any writes: after a test, the clone equals its
template again, or is replaced by one that does.

Without more, some 500 programs are run; the environment variable TEST_EXAMPLES multiplies them, and
chooses others each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import HealthCheck, Phase, given, note
from hypothesis import settings as examples
from hypothesis import strategies as st

from dbclone.server.dsn import Dsn
from dbclone.server.server import Server

from . import dump
from .life import life
from .programs import pools, programs
from .schemas import schemas

pytestmark = pytest.mark.slow

EXAMPLES = max(1, round(14 * float(os.environ.get("TEST_EXAMPLES", "1"))))
# Shrinking takes minutes, because each attempt builds a template: by hand, when there is something
# to shrink.
PHASES = tuple(Phase) if os.environ.get("TEST_SHRINK") else (Phase.generate,)
WILD = os.environ.get("TEST_WILD", "1") == "1"


@pytest.fixture
def plain(server: Server, role: Dsn) -> Iterator[Server]:
    """The server as a role that may create databases and nothing else sees it."""
    with Server.open(replace(server.settings, url=role.url)) as opened:
        yield opened


def equal_after_any_writes(server: Server, above: Server) -> None:
    """Try many schemas, and programs in each. Arguments: `above`, the server as a superuser sees
    it."""

    @examples(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
        phases=PHASES,
    )
    @given(data=st.data())
    def example(data: st.DataObject) -> None:
        schema = data.draw(schemas(), "schema")
        pool = pools(schema, server.facts.superuser)
        with life(server, schema, above, dump.program(above)) as lived:
            for number, program in enumerate(
                chain(
                    *data.draw(
                        st.lists(st.lists(programs(pool, WILD), max_size=8), max_size=10),
                        "programs",
                    )
                )
            ):
                note(f"program {number + 1} finds what the one before it has left")
                lived.live(program)
            lived.end()

    example()


def test_after_any_writes_of_a_superuser(server: Server) -> None:
    """C15, C18: any DDL, under any names."""
    equal_after_any_writes(server, server)


def test_after_any_writes_of_a_plain_role(server: Server, plain: Server) -> None:
    """C9, C15, C18."""
    equal_after_any_writes(plain, server)
