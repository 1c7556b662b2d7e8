"""The other resets of a clone: clone, drop, none; tables to keep; snapshots; and what they have in
common."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from dbclone import KeptTableReferenced, ResetBlocked, SandboxLimit, SettingsError, TemplateError
from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.settings import Settings

from ...oracle import fingerprint
from ...shop import cloned, identity

pytestmark = pytest.mark.clone_of(lock_timeout=2)

EVERYTHING = (
    "INSERT INTO parent (name) VALUES ('a')",
    "UPDATE country SET name = name || '!'",
    "CREATE TABLE brand_new (v int)",
    "DROP TABLE cascading",
    "SELECT nextval('free')",
    "SELECT lo_create(0)",
    "REFRESH MATERIALIZED VIEW totals",
)


def test_a_fresh_clone_for_each_test(fresh_clone: Clone) -> None:
    """Everything is real in it: sessions, DDL, prepared transactions; whatever is left there goes
    with it."""
    truth, seen = fingerprint(fresh_clone.url), {identity(fresh_clone)}
    for number in range(3):
        left = None
        with fresh_clone.isolated("clone", f"test {number}") as isolation:
            assert isolation.reset == "clone"
            for statement in EVERYTHING:
                isolation.execute(statement.encode())
            left = psycopg.connect(fresh_clone.url)
            left.execute("LISTEN news")
            left.execute("INSERT INTO parent (name) VALUES ('open')")
        assert fingerprint(fresh_clone.url) == truth
        with pytest.raises(psycopg.OperationalError):
            left.execute("SELECT 1")
        left.close()
        seen.add(identity(fresh_clone))
    assert len(seen) == 4
    assert fresh_clone.report.resets["clone"] == 3


def test_dropping_and_building_again(fresh_clone: Clone) -> None:
    truth = fingerprint(fresh_clone.url)
    with fresh_clone.isolated("drop", "first") as isolation:
        for statement in EVERYTHING:
            isolation.execute(statement.encode())
    with psycopg.connect(fresh_clone.url) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)
    with fresh_clone.isolated("drop", "second") as isolation:
        assert isolation.execute("SELECT count(*) FROM country").fetchone() == (3,)
        assert isolation.execute("SELECT count(*) FROM parent").fetchone() == (0,)
        assert isolation.execute("SELECT nextval('free')").fetchone() == (7,)
    with fresh_clone.isolated("truncate", "another reset starts from a fresh clone"):
        assert fingerprint(fresh_clone.url) == truth


def test_none_leaves_everything_until_a_reset_looks(fresh_clone: Clone) -> None:
    truth = fingerprint(fresh_clone.url)
    with fresh_clone.isolated("none", "first") as isolation:
        isolation.execute("INSERT INTO parent (name) VALUES ('left')")
        isolation.execute("DELETE FROM city")
    with fresh_clone.isolated("none", "second") as isolation:
        assert isolation.execute("SELECT count(*) FROM parent").fetchone() == (1,)
    with fresh_clone.isolated("truncate", "third"):
        pass
    assert fingerprint(fresh_clone.url) == truth


def test_resets_of_all_kinds_one_after_the_other(fresh_clone: Clone) -> None:
    truth = fingerprint(fresh_clone.url, sequences=False)
    order = "rollback truncate rollback clone truncate drop rollback clone drop truncate rollback"
    for reset in order.split():
        with fresh_clone.isolated(reset, reset) as isolation:
            assert isolation.execute("SELECT count(*) FROM parent").fetchone() == (0,), reset
            assert isolation.execute("SELECT count(*) FROM city").fetchone() == (6,), reset
            isolation.execute("INSERT INTO parent (name) VALUES ('a')")
            isolation.execute("DELETE FROM city WHERE id = 1")
    found = fingerprint(fresh_clone.url, sequences=False)
    assert {k for k in truth if found[k] != truth[k]} <= {"comments", "large objects"}


@pytest.mark.parametrize("pattern", ["audit", "public.audit", "aud*"])
def test_a_table_to_keep_is_kept(
    server: Server, settings: Settings, tmp_path: Path, pattern: str
) -> None:
    """With its sequence, as the tests leave it; everything else is put back."""
    with cloned(server, settings, tmp_path, keep=(pattern,)) as clone:
        for number in range(3):
            with clone.isolated("truncate", "keeper") as isolation:
                assert isolation.execute("SELECT count(*) FROM audit").fetchone() == (number,)
                isolation.execute("INSERT INTO audit (what) VALUES ('x')")
                isolation.execute("INSERT INTO parent (name) VALUES ('x')")
                assert isolation.execute("SELECT max(id) FROM audit").fetchone() == (number + 1,)
        with clone.isolated("truncate") as isolation:
            assert isolation.execute("SELECT count(*) FROM parent").fetchone() == (0,)


def test_a_partitioned_table_is_kept_by_its_own_name(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    with cloned(server, settings, tmp_path, keep=("part",)) as clone:
        with clone.isolated("truncate") as isolation:
            isolation.execute("INSERT INTO part VALUES (1, 'low'), (50, 'high')")
        with clone.isolated("truncate") as isolation:
            assert isolation.execute("SELECT count(*) FROM part").fetchone() == (2,)


def test_a_kept_table_that_references_another_is_refused_at_the_start(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    """C4: rather than broken by a reset, or emptied with the other."""
    with (
        pytest.raises(KeptTableReferenced) as caught,
        cloned(server, settings, tmp_path, keep=("child",)),
    ):
        pass
    assert "public.child" in caught.value.message
    assert "public.parent" in caught.value.message
    assert "child_parent_fkey" in caught.value.detail
    with (
        cloned(server, settings, tmp_path, keep=("child", "parent", "cascading")) as clone,
        clone.isolated("truncate"),
    ):
        pass


def test_a_name_that_no_table_has_is_refused_at_the_start(
    server: Server, settings: Settings, tmp_path: Path
) -> None:
    with (
        pytest.raises(SettingsError, match="'nothing'"),
        cloned(server, settings, tmp_path, keep=("nothing",)),
    ):
        pass


def test_coming_back_to_a_snapshot_any_number_of_times(fresh_clone: Clone) -> None:
    truth = fingerprint(fresh_clone.url)
    with fresh_clone.isolated("truncate", "snapshots") as isolation:
        isolation.execute("INSERT INTO parent (name) VALUES ('one')")
        isolation.execute("CREATE TABLE brand_new (v int)")
        isolation.snapshot("one")
        isolation.execute("INSERT INTO parent (name) VALUES ('two')")
        isolation.snapshot("two")
        for _ in range(2):
            isolation.execute("DELETE FROM parent")
            isolation.execute("DROP TABLE brand_new")
            isolation.restore("one")
            assert isolation.execute("SELECT name FROM parent").fetchall() == [("one",)]
            isolation.restore("two")
            assert isolation.execute("SELECT count(*) FROM parent, brand_new").fetchall() == [(0,)]
            assert isolation.execute("SELECT name FROM parent ORDER BY id").fetchall() == [
                ("one",),
                ("two",),
            ]
    assert fingerprint(fresh_clone.url) == truth
    with fresh_clone.isolated("truncate", "another test") as isolation:
        isolation.restore("one")
        assert isolation.execute("SELECT name FROM parent").fetchall() == [("one",)]
    assert fingerprint(fresh_clone.url) == truth


def test_a_reset_after_a_restore_needs_no_fresh_clone(fresh_clone: Clone) -> None:
    """What is known of the template holds for every copy."""
    truth = fingerprint(fresh_clone.url)
    with fresh_clone.isolated("truncate", "snapshots") as isolation:
        isolation.execute("UPDATE country SET name = name || '!'")
        isolation.snapshot("changed")
        isolation.restore("changed")
        before = identity(fresh_clone)
    assert identity(fresh_clone) == before
    assert fingerprint(fresh_clone.url) == truth


def test_snapshots_die_with_the_clone(server: Server, settings: Settings, tmp_path: Path) -> None:
    with cloned(server, settings, tmp_path) as clone:
        clone.snapshot("a")
        clone.snapshot("a")
        clone.snapshot("b")
        name = clone.mark.project
        count = server.fetch(
            "SELECT count(*) FROM pg_database WHERE datname ~ %s", [f"^dbclone_{name}_"]
        )
        assert count == [(4,)]  # the template, the clone and two snapshots
    assert server.fetch(
        "SELECT count(*) FROM pg_database WHERE datname ~ %s", [f"^dbclone_{name}_"]
    ) == [(1,)]


def test_a_snapshot_that_cannot_be_says_why(fresh_clone: Clone) -> None:
    with fresh_clone.isolated("truncate") as isolation:
        with pytest.raises(TemplateError, match="'never'"):
            isolation.restore("never")
        with (
            psycopg.connect(fresh_clone.url, application_name="somebody"),
            pytest.raises(ResetBlocked, match="connected") as caught,
        ):
            isolation.snapshot("now")
        assert "somebody" in caught.value.detail
    fresh_clone.handle = None
    with fresh_clone.isolated("rollback") as isolation:
        with pytest.raises(SandboxLimit, match="snapshot"):
            isolation.snapshot("inside")
        with pytest.raises(SandboxLimit, match="restore"):
            isolation.restore("inside")


def test_an_audit_inside_a_layer_leaves_the_sequences_alone(fresh_clone: Clone) -> None:
    """The layer's rows have numbers that must not be given again."""

    def escape() -> None:
        with fresh_clone.isolated("rollback", "test") as isolation:
            with fresh_clone.connect("elsewhere", autocommit=True) as elsewhere:
                elsewhere.execute("INSERT INTO parent (name) VALUES ('escaped')")
            isolation.execute("INSERT INTO parent (name) VALUES ('test')")
            assert isolation.execute(
                "SELECT count(*) FROM parent WHERE name = 'layer'"
            ).fetchone() == (1,)

    with fresh_clone.layer("class") as layer:
        layer.execute("INSERT INTO parent (name) VALUES ('layer')")
        for _ in range(3):
            with pytest.warns(UserWarning, match="outside its sandbox"):
                escape()
    with fresh_clone.isolated("truncate", "next") as isolation:
        assert isolation.execute(
            "INSERT INTO parent (name) VALUES ('first') RETURNING id"
        ).fetchone() == (1,)


def test_a_reset_that_there_is_not_is_refused_by_name(fresh_clone: Clone) -> None:
    with (
        pytest.raises(SettingsError, match="'rolback' is no reset") as caught,
        fresh_clone.isolated("rolback", "test"),
    ):
        pass
    assert "rollback" in caught.value.hint
