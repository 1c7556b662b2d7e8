"""Names and marks as values: no two owners share a name, a mark says what it said, and only what is
surely dead or retired is."""

from __future__ import annotations

import itertools
import json
import re
import time
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dbclone.databases.naming import (
    FORMAT,
    KINDS,
    Database,
    Mark,
    build_name,
    check_name,
    clone_name,
    find_expired,
    find_orphaned,
    free_template_name,
    limit_for,
    spare_name,
    template_name,
    template_names,
)
from dbclone.errors import TemplateError
from dbclone.server.locks import lock_key

ANY = st.text(max_size=80)
PROJECT = ANY | st.sampled_from(
    ["", "shop", "Shop", "s_h", "x" * 80, "Ünïcode", "a\0b", "dbclone", "t", "gw0"]
)
VALUE = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=40
)  # of a run or a fingerprint
OWNER = VALUE | st.sampled_from(["main", "gw0", "gw10", "gw1", "GW0", "xgw0", "x" * 12, "x" * 13])
SHAPE = re.compile(r"dbclone_[a-z0-9_]+")
SYSTEM = "7000000000000000001"
DAY = 86400


@given(project=PROJECT, fingerprint=VALUE, run=VALUE, owner=OWNER)
@example(project="x" * 80, fingerprint="f" * 80, run="r" * 80, owner="a" * 30)
def test_every_name_is_one_that_the_server_stores_as_it_is(
    project: str, fingerprint: str, run: str, owner: str
) -> None:
    """B5, P3: ASCII, small letters, at most 63 bytes; and it passes the check before a database is
    made or dropped."""
    for name in (
        template_name(project, fingerprint),
        build_name(project),
        spare_name(project),
        clone_name(project, run, owner),
    ):
        assert SHAPE.fullmatch(name)
        assert len(name) <= 63
        check_name(name)


@given(one=st.tuples(PROJECT, VALUE, OWNER), other=st.tuples(PROJECT, VALUE, OWNER))
def test_no_two_owners_have_the_same_name(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    """P3: whatever of them is the same; a template and a clone never share one either."""
    for a, b in (
        (one, other),
        (one, (one[0], one[1], other[2])),
        (one, (one[0], other[1], one[2])),
        (one, (other[0], *one[1:])),
    ):
        assert (clone_name(*a) == clone_name(*b)) == (a == b)
        assert (template_name(*a[:2]) == template_name(*b[:2])) == (a[:2] == b[:2])
        assert (lock_key(clone_name(*a)) == lock_key(clone_name(*b))) == (a == b)
        assert template_name(*a[:2]) != clone_name(*b)
        shown = clone_name(*a).rpartition("_")[2]
        assert shown == a[2] or clone_name(*a) != clone_name(a[0], a[1], shown), (
            "an owner called as another is shown"
        )


@given(project=PROJECT, run=VALUE, owner=OWNER)
def test_a_name_does_not_depend_on_where_it_is_worked_out_and_a_private_one_is_new_each_time(
    project: str, run: str, owner: str
) -> None:
    assert clone_name(project, run, owner) == clone_name(project, run, owner)
    assert (
        len({build_name(project), build_name(project), spare_name(project), spare_name(project)})
        == 4
    )


def test_names_and_keys_are_the_same_in_every_version() -> None:
    """Processes of several versions share one server, so a change of these breaks what is running."""
    assert template_name("shop", "f" * 16) == "dbclone_shop_t_2696c1bacae5"
    assert clone_name("shop", "run", "gw0") == "dbclone_shop_7f6bf1bc_gw0"
    assert lock_key("dbclone_shop_t_1") == 4781912828325909029
    assert limit_for("dbclone_shop_7f6bf1bc_gw0", SYSTEM) == 1_687_320_267


@given(name=ANY)
def test_any_other_name_is_refused(name: str) -> None:
    assume(not SHAPE.fullmatch(name) or len(name) > 63)
    with pytest.raises(TemplateError, match="is not a name that dbclone gives"):
        check_name(name)


NUMBER = st.floats(0, 1e12).map(lambda n: round(n, 3))
MARKS = st.builds(
    Mark,
    st.sampled_from(KINDS), ANY, ANY, fingerprint=ANY, run=ANY, worker=ANY, template=ANY, created=NUMBER, used=NUMBER, host=ANY,
    pid=st.integers(0, 2**31), seconds=NUMBER, manifest=st.dictionaries(ANY, ANY, max_size=4),
)  # fmt: skip


@given(mark=MARKS)
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    assert Mark.read(mark.text()) == mark
    assert "\0" not in mark.text()  # which no comment can hold


def test_a_mark_says_when_where_and_by_whom_it_was_made() -> None:
    before = time.time()
    mark = Mark.make("clone", "shop", SYSTEM, run="r", worker="gw0")
    assert before - 1 <= mark.created == mark.used <= time.time() + 1
    assert mark.host
    assert mark.pid
    assert Mark.read(mark.text()) == mark


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=6,
)
NAMES = [field.name for field in fields(Mark)]


@given(mark=MARKS, where=st.sampled_from([*NAMES, "dbclone", "another"]), value=JSON)
def test_whatever_a_comment_holds_what_is_read_is_a_sound_mark_or_none(
    mark: Mark, where: str, value: Any
) -> None:
    """A mark that is believed is proof enough to drop a database, and code counts on the types of
    its parts."""
    data = {**json.loads(mark.text()), where: value}
    found = Mark.read(json.dumps(data))
    if found is None:
        return
    assert data["dbclone"] == FORMAT
    assert not isinstance(data["dbclone"], (bool, float))
    assert where in NAMES or where == "dbclone"
    assert found.kind in KINDS
    for field in fields(Mark):
        expected = {"str": (str,), "int": (int,), "float": (int, float), "dict[str, str]": (dict,)}[
            str(field.type)
        ]
        assert isinstance(getattr(found, field.name), expected)
        assert not isinstance(getattr(found, field.name), bool)
    assert all(isinstance(part, str) for pair in found.manifest.items() for part in pair)
    assert 0 <= found.created < float("inf")
    assert 0 <= found.used < float("inf")
    assert Mark.read(found.text()) == found


GOOD = {"dbclone": FORMAT, "kind": "clone", "project": "p", "system": SYSTEM}


@pytest.mark.parametrize(
    "comment",
    [
        None, "", " ", "a comment", "null", "[]", "1", "{}", "[" * 100_000, '{"a":' * 100_000, "{" + "x" * 5_000_000,
        json.dumps({k: v for k, v in GOOD.items() if k != "dbclone"}), json.dumps({**GOOD, "dbclone": FORMAT + 1}),
        json.dumps({**GOOD, "dbclone": str(FORMAT)}), json.dumps({**GOOD, "dbclone": True}), json.dumps({**GOOD, "dbclone": 1.0}),
        json.dumps({k: v for k, v in GOOD.items() if k != "kind"}), json.dumps({**GOOD, "kind": "other"}),
        json.dumps({**GOOD, "kind": ["clone"]}), json.dumps({k: v for k, v in GOOD.items() if k != "system"}),
        json.dumps({k: v for k, v in GOOD.items() if k != "project"}), json.dumps({**GOOD, "of the future": 1}),
        json.dumps({**GOOD, "host": 1}), json.dumps({**GOOD, "used": "yesterday"}), json.dumps({**GOOD, "used": True}),
        json.dumps({**GOOD, "created": float("nan")}), json.dumps({**GOOD, "used": float("inf")}), json.dumps({**GOOD, "used": -1}),
        json.dumps({**GOOD, "pid": 1.5}), json.dumps({**GOOD, "manifest": {"a": 1}}), json.dumps({**GOOD, "manifest": ["a"]}),
        json.dumps({**GOOD, "used": 10**400}), json.dumps({**GOOD, "project": "\ud800"}),
        json.dumps({**GOOD, "system": None}), json.dumps(GOOD)[:-1], json.dumps([GOOD]),
    ],
)  # fmt: skip
def test_a_comment_that_is_no_mark_of_ours_is_none(comment: str | None) -> None:
    """S20: so the database is not ours: corrupt, somebody else's, or of a later version that knows
    better."""
    assert Mark.read(json.dumps(GOOD)) is not None
    assert Mark.read(comment) is None


OIDS = itertools.count(16384)


def database(name: str, mark: Mark | None = None, **values: Any) -> Database:
    """Return a database of ours as the catalogue shows it."""
    usual = {
        "oid": 16384 + hash(name) % 10_000,
        "own": True,
        "sealed": True,
        "limit": limit_for(name, SYSTEM),
        "bytes": 0,
        "sessions": 0,
        "comment": None,
    }
    found = Database(name=name, mark=None, **{**usual, **values})
    return found if mark is None else marked(found, mark.bound(name, found.oid))


def marked(found: Database, mark: Mark) -> Database:
    return replace(found, mark=mark, comment=mark.text())


def mark_of(kind: str, project: str = "shop", **values: Any) -> Mark:
    return replace(Mark.make(kind, project, SYSTEM), **values)


def template(fingerprint: str, project: str = "shop", idle: float = 0.0, **values: Any) -> Database:
    mark = mark_of("template", project, fingerprint=fingerprint, used=time.time() - idle * DAY)
    return database(template_name(project, fingerprint), mark, **values)


TEMPLATE = template("f1", oid=77)
OWNERLESS = {
    "a build": (database(build_name("shop"), mark_of("build")), "build whose owner is gone"),
    "a clone": (
        database(clone_name("shop", "r", "gw0"), mark_of("clone")),
        "clone whose owner is gone",
    ),
    "one without a mark yet": (database(build_name("shop")), "unfinished whose owner is gone"),
    "a template under its private name": (
        database(build_name("shop"), mark_of("template", fingerprint="f1")),
        "template that was not published, or was replaced",
    ),
    "a warm clone of what is gone": (
        database(spare_name("shop"), mark_of("spare", template="78")),
        "warm clone of a template that is gone",
    ),
    "an old scratch clone": (
        database(build_name("shop"), mark_of("scratch", created=time.time() - 2 * DAY)),
        "scratch clone older than a day",
    ),
}
ALIVE = {
    "a published template": TEMPLATE,
    "a warm clone of it": database(spare_name("shop"), mark_of("spare", template="77")),
    "a young scratch clone": database(build_name("shop"), mark_of("scratch")),
}


@pytest.mark.parametrize("what", OWNERLESS)
def test_what_lost_its_owner_is_dead_and_what_has_one_or_is_no_proof_is_not(what: str) -> None:
    found, reason = OWNERLESS[what]
    others = [TEMPLATE, *ALIVE.values()]
    assert list(find_orphaned([found, *others], set(), SYSTEM)) == [(found, reason)]
    if not reason.startswith("scratch"):
        assert not list(find_orphaned([found, *others], {lock_key(found.name)}, SYSTEM)), (
            "its owner lives"
        )
    spared = {
        "somebody is connected": replace(found, sessions=1),
        "another role's": replace(found, own=False),
        "another name": replace(found, name="shop"),
        "a system database": replace(found, name="postgres"),
        "renamed by its user": replace(found, name=f"{found.name}_mine"),
        "renamed to a name like ours": replace(found, name=spare_name("shop")),
        "another database with its comment, or with its limit": replace(
            found, oid=found.oid + 1, name=clone_name("shop", "x", "y")
        ),
        "another server's": replace(found, mark=replace(found.mark, system="1"))
        if found.mark
        else replace(found, limit=-1),
        "another of its name, with a copy of its comment": replace(
            found, oid=found.oid + 1, limit=-1
        ),
        "somebody's comment": replace(found, mark=None, comment="mine"),
        "neither mark nor limit": replace(found, mark=None, comment=None, limit=-1),
    }
    for why, other in spared.items():
        assert not list(find_orphaned([other, *others], set(), SYSTEM)), why


@pytest.mark.parametrize("what", ALIVE)
def test_what_needs_no_owner_is_alive(what: str) -> None:
    assert not list(find_orphaned([ALIVE[what], TEMPLATE], set(), SYSTEM))


def test_a_warm_clone_of_another_roles_template_or_of_a_namesake_is_dead() -> None:
    """A rebuilt template has the same name and another oid."""
    spare = database(spare_name("shop"), mark_of("spare", template="77"))
    assert [d for d, _ in find_orphaned([spare, template("f1", oid=78)], set(), SYSTEM)] == [spare]


@given(
    name=st.sampled_from([clone_name("shop", "r", "gw0"), build_name("shop")]) | VALUE, system=VALUE
)
def test_the_limit_of_a_new_database_limits_nothing_and_is_its_own(name: str, system: str) -> None:
    """A client killed between CREATE DATABASE and COMMENT leaves nothing else that proves whose it
    is."""
    limit = limit_for(name, system)
    assert 2**18 < limit < 2**31, (
        "max_connections is below, and an integer of the server's holds it"
    )
    assert limit == limit_for(name, system)
    assert limit != limit_for(f"{name}_", system)
    assert limit != limit_for(name, f"{system}0")


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1, 99])
def test_a_template_of_another_version_is_built_beside(number: int) -> None:
    """An older dbclone that meets a newer one's template cannot know what it is worth, and neither
    may drop the other's."""
    usual, *others = template_names("shop", "f1")
    foreign = replace(
        TEMPLATE, mark=None, comment=json.dumps({"dbclone": number, "kind": "template"})
    )
    assert (foreign.name, foreign.other_format) == (usual, number)
    assert (
        foreign.problem(SYSTEM)
        == f"its mark is that of another version of dbclone (format {number}, ours is {FORMAT})"
    )
    assert (
        free_template_name("shop", "f1", [])
        == free_template_name("shop", "f1", [TEMPLATE])
        == usual
    )
    assert free_template_name("shop", "f1", [foreign]) == others[0]
    beside = database(others[0], mark_of("template", fingerprint="f1"))
    assert beside.published
    assert free_template_name("shop", "f1", [foreign, beside]) == others[0]
    assert (
        free_template_name("shop", "f1", [replace(foreign, name=name) for name in (usual, *others)])
        == others[-1]
    )


@pytest.mark.parametrize(
    "comment",
    [None, "", "shop", "{}", "[1]", '{"dbclone": true}', '{"dbclone": "3"}', '{"dbclone": -1}'],
)
def test_what_says_no_version_is_nobody_s_template(comment: str | None) -> None:
    assert replace(TEMPLATE, mark=None, comment=comment).other_format == 0


@given(
    idles=st.lists(st.floats(0, 40), max_size=8),
    leased=st.sets(st.integers(0, 7)),
    foreign=st.sets(st.integers(0, 7)),
    current=st.integers(0, 8),
    count=st.integers(1, 5),
    days=st.floats(0, 40),
)
def test_the_newest_templates_of_a_project_stay(
    idles: list[float], leased: set[int], foreign: set[int], current: int, count: int, days: float
) -> None:
    """The one in use now and those of living runs always do; one that is not ours is left alone
    whatever its age."""
    assume(
        all(abs(idle - days) > 0.001 for idle in idles)
        and len({round(idle, 3) for idle in idles}) == len(idles)
    )
    known = [template(f"f{n}", idle=idle, own=n not in foreign) for n, idle in enumerate(idles)]
    now = known[current].name if current < len(known) else ""
    held = {lock_key(known[n].name) for n in leased if n < len(known)}
    gone = {d.name for d, _ in find_expired(known, held, SYSTEM, "shop", now, count, days)}
    assert now not in gone
    order = sorted(
        (d for d in known if d.name != now),
        key=lambda d: d.mark.used if d.mark else 0,
        reverse=True,
    )
    for rank, found in enumerate(order, start=2 if now else 1):
        protected = lock_key(found.name) in held or not found.own
        idle = idles[known.index(found)]
        assert (found.name in gone) == (not protected and (rank > count or idle > days))


def test_of_other_projects_only_what_nobody_used_for_long_is_retired() -> None:
    others = [template(f"f{n}", project="other", idle=n) for n in range(10)]
    own = [template("f1"), template("f2", idle=1), template("f3", idle=2)]
    found = {
        d.name: why
        for d, why in find_expired([*others, *own], set(), SYSTEM, "shop", own[0].name, 2, 8.5)
    }
    assert found == {
        others[9].name: "template unused for 9 days",
        own[2].name: "template number 3 of this project, 2 are kept",
    }
    not_templates = [
        database(clone_name("shop", "r", "gw0"), mark_of("clone", used=0.0)),
        database(build_name("shop")),
    ]
    assert not list(find_expired(not_templates, set(), SYSTEM, "shop", "", 1, 1))
