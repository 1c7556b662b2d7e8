"""After thousands of tests tables are as small, and plans as good, as after the first."""

from __future__ import annotations

import pytest

from dbclone.clone.clone import Clone

pytestmark = pytest.mark.slow

RESETS = 1200
PROBE = "SELECT * FROM parent p JOIN child c ON c.parent = p.id WHERE p.name = 'n7' ORDER BY c.id"


def looked_at(clone: Clone, reset: str) -> tuple[str, dict[str, int]]:
    """Return the plan of a query in a test with some rows, and the pages of all tables after it."""
    with clone.isolated(reset, "probe") as isolation:
        isolation.execute(
            "INSERT INTO parent (name) SELECT 'n' || g FROM generate_series(1, 50) AS g"
        )
        isolation.execute("INSERT INTO child (parent) SELECT id FROM parent")
        plan = "\n".join(line for (line,) in isolation.execute(f"EXPLAIN {PROBE}").fetchall())
    with clone.connect() as connection:
        sizes = "SELECT relname::text, pg_relation_size(oid) / 8192 FROM pg_class WHERE relkind IN ('r', 'i')"
        return plan, dict(connection.execute(sizes).fetchall())


@pytest.mark.parametrize("reset", ["truncate", "rollback"])
def test_the_last_of_many_resets_leaves_what_the_first_did(fresh_clone: Clone, reset: str) -> None:
    """Each test writes new rows, changes a seed and adds to it; autovacuum is off on the private
    server."""
    plan, pages = looked_at(fresh_clone, reset)
    kept = fresh_clone.connect(autocommit=True)
    for _ in range(RESETS):
        with fresh_clone.isolated(reset, "writer") as found:
            isolation = found if reset == "rollback" else kept
            isolation.execute(
                "INSERT INTO parent (name) SELECT 'n' || g FROM generate_series(1, 20) AS g"
            )
            isolation.execute("INSERT INTO child (parent) SELECT id FROM parent")
            isolation.execute("UPDATE country SET name = name || '!' WHERE code = 'de'")
            isolation.execute("INSERT INTO country VALUES ('es', 'España')")
    kept.close()
    again, after = looked_at(fresh_clone, reset)
    assert again == plan
    # 24,000 rows would be 130 pages of each table; those of up to a hundred tests wait for the next
    # look.
    grown = {
        name: (pages[name], after[name]) for name in after if after[name] > pages.get(name, 0) + 25
    }
    assert not grown
