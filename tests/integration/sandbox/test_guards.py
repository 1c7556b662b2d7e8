"""What a statement outside any block costs in a sandbox, and what its failure undoes."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from dbclone.clone.isolation import Isolation
from dbclone.sandbox.savepoints import Savepoints

from ..twice import INSERT, Both, table

pytestmark = pytest.mark.clone_of(make=table)


@pytest.mark.parametrize("piped", [False, True])
def test_what_fails_outside_a_block_undoes_nothing_but_itself(both: Both, piped: bool) -> None:
    """Whatever was read or written since the guard before it was set."""

    def program(db: Isolation) -> Any:
        connection, seen = db.connect(autocommit=True), []
        for text in [
            *(
                "SELECT 1",
                f"{INSERT}",
                "SELECT count(*) FROM t",
                "SELECT 1/0",
                "SELECT count(*) FROM t",
                "SELECT 2",
                "SELECT 1/0",
            ),
            *(
                "SELECT set_config('work_mem', '77MB', false)",
                "SELECT 1/0",
                "SELECT current_setting('work_mem')",
                "SET work_mem = '78MB'",
            ),
            *(
                "SELECT 1/0",
                "SELECT current_setting('work_mem')",
                "BEGIN",
                "COMMIT",
                "SELECT 1/0",
                "SELECT count(*) FROM t",
            ),
        ]:
            with contextlib.ExitStack() as stack:
                stack.enter_context(contextlib.suppress(psycopg.errors.DivisionByZero))
                if piped and text not in ("BEGIN", "COMMIT"):
                    stack.enter_context(connection.pipeline())
                    connection.execute("SELECT 3")
                cursor = connection.execute(text, [1] if "%s" in text else None)
                seen.append(cursor.fetchall() if text.startswith("SELECT") else None)
        return seen

    assert both(program)[-1] == [(1,)]


def test_a_guard_costs_no_message_of_its_own_where_one_can_be_foreseen() -> None:
    stack = Savepoints()
    stack.enter_level(False)
    assert stack.before_statement(1, False, "SELECT 1") == [("SAVEPOINT", "dbclone_guard_1")]
    assert stack.before_statement(1, False, "SELECT 2") == []
    assert stack.before_statement(1, False, "INSERT INTO t VALUES (1)") == []
    assert stack.before_statement(1, False, "SELECT 2") == [
        ("RELEASE", "dbclone_guard_1"),
        ("SAVEPOINT", "dbclone_guard_1"),
    ]
    stack.begin(1, False)
    stack.before_statement(1, False, "INSERT INTO t VALUES (1)")
    assert stack.end(1, False, keep=True)[-1] == ("SAVEPOINT", "dbclone_guard_1")
    assert stack.before_statement(1, False, "SELECT 1") == []
    stack.leave_level(stack.level)
    assert stack.enter_level(False)[-1] == ("SAVEPOINT", "dbclone_guard_1")
    stack.begin(1, False)  # it was foreseen in vain
    assert ("SAVEPOINT", "dbclone_guard_1") not in stack.end(1, False, keep=True)
