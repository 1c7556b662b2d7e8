"""Databases of others that look like ours: whatever their names and comments hold, they are left
alone and stop nobody."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from dbclone.cli.main import main
from dbclone.databases import ddl
from dbclone.databases.naming import FORMAT, Mark
from dbclone.databases.prune import prune
from dbclone.errors import NotOwned, printable
from dbclone.runner import worker
from dbclone.server.server import Server
from dbclone.settings import Settings, load

from ...conftest import Project
from ..hostile import ANYTHING, examples


@contextlib.contextmanager
def database(server: Server, name: str = "") -> Iterator[str]:
    """An empty database with a name that begins as ours do; dropped at the end, so it must still be
    there."""
    name = name or f"dbclone_look_alike_{uuid.uuid4().hex[:6]}"
    server.connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").format(
            sql.Identifier(name)
        )
    )
    yield name
    server.connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


def comment(server: Server, name: str, text: str) -> None:
    server.connection.execute(
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(text))
    )


def good(server: Server, name: str, /, **values: Any) -> dict[str, Any]:
    """Return a database's mark of an owner who is dead, so that it may be dropped; with other
    values in it, it may not."""
    found = ddl.find(server, name)
    made = Mark.make("clone", "suite", server.facts.system, run="r", worker="gw0")
    mark = asdict(made.bound(name, found.oid if found is not None else 0))
    return {"dbclone": FORMAT, **mark, "created": 0.0, **values}


def corrupt(server: Server, name: str) -> dict[str, str]:
    text = json.dumps(good(server, name))
    return {
        "corrupt": text.replace('"kind":', '"kind"'),
        "truncated": text[:-10],
        "half": text[: len(text) // 2],
        "no JSON": "shop of Ann",
        "of the future": json.dumps(good(server, name, dbclone=FORMAT + 1)),
        "of the far future": json.dumps(good(server, name, dbclone=10**30)),
        "with a new part": json.dumps(good(server, name, quota=3)),
        "another kind": json.dumps(good(server, name, kind="replica")),
        "another server's": json.dumps(good(server, name, system="1")),
        "another database's": json.dumps(good(server, name, oid=1)),
        "for another name": json.dumps(good(server, name, name=f"{name}_")),
        "of no server": json.dumps(good(server, name, system="")),
        "a megabyte": json.dumps({"note": "x" * 2**20}),
        "a megabyte of brackets": "[" * 2**20,
        "a list": json.dumps([good(server, name)]),
        "twice": text + text,
        "in quotes": json.dumps(text),
        "half a character": text.replace("gw0", "\\ud800"),
        "for a terminal": "\x1b[2J\x1b]0;owned\x07 shop",
        "in YAML": "dbclone: 1\nkind: clone",
        "a number": "1",
        "SQL": "'; DROP DATABASE victim; --",
    }


KINDS = [
    "corrupt", "truncated", "half", "no JSON", "of the future", "of the far future", "with a new part", "another kind",
    "another server's", "another database's", "for another name", "of no server", "a megabyte",
    "a megabyte of brackets", "a list", "twice", "in quotes", "half a character", "for a terminal", "in YAML", "a number", "SQL",
]  # fmt: skip


@pytest.fixture(scope="module")
def look_alike(server: Server) -> Iterator[str]:
    with database(server) as name:
        yield name


def alone(
    server: Server, name: str, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> str:
    """Try everything that could harm a database or be harmed by it; return what `status` says of
    it."""
    (found,) = [d for d in ddl.list_databases(server) if d.name == name]
    assert found.problem(server.facts.system)
    with pytest.raises(NotOwned, match="is left alone"):
        ddl.drop(server, found, force=True)
    for everything in (False, True):
        assert not [
            d for d, _ in prune(server, everything=everything, dry_run=True) if d.name == name
        ]
    words = [
        word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)
    ]
    assert main(["status", "--json", "--manifest", *words]) == 0
    (row,) = [
        row for row in json.loads(capsys.readouterr().out)["databases"] if row["name"] == name
    ]
    assert row["problem"].startswith(", left alone: ")
    assert main(["status", "--manifest", *words]) == 0
    said = capsys.readouterr().out
    assert said == printable(said)
    assert main(["url", name, *words]) == 1
    assert capsys.readouterr().out == ""
    return said


@pytest.mark.parametrize("what", KINDS)
def test_a_comment_that_is_no_mark_leaves_the_database_alone_and_stops_nobody(
    what: str,
    server: Server,
    look_alike: str,
    options: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """S25: the comment may hold anything, and what is shown of it obeys no terminal."""
    known = corrupt(server, look_alike)
    assert list(known) == KINDS
    comment(server, look_alike, json.dumps(good(server, look_alike)))
    assert [
        d
        for d in ddl.list_databases(server)
        if d.name == look_alike and not d.problem(server.facts.system)
    ]
    comment(server, look_alike, known[what])
    assert look_alike in alone(server, look_alike, options, capsys)


def test_a_comment_and_a_name_in_another_encoding_stop_nobody(
    server: Server, look_alike: str, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catalogues that all databases share hold bytes of the encoding of whichever wrote them: here
    LATIN1, read as UTF-8."""
    other = ""
    with server.connect(look_alike, "test") as connection:
        comment_of = sql.SQL("COMMENT ON DATABASE {} IS {}")
        connection.execute(
            comment_of.format(sql.Identifier(look_alike), sql.Literal("Ann's caf\xe9 \xff\xfe"))
        )
        other = f"dbclone_caf\xe9_{uuid.uuid4().hex[:6]}"
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").format(
                sql.Identifier(other)
            )
        )
    try:
        assert [d for d in ddl.list_databases(server) if d.name == other.replace("\xe9", "\ufffd")]
        assert other.replace("\xe9", "\ufffd") in alone(server, look_alike, options, capsys)
    finally:
        with server.connect(look_alike, "test") as connection:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(other)))
    comment(server, look_alike, "")


@pytest.mark.parametrize(
    "name",
    [
        "dbclone_\x1b[2J",
        "dbclone_X",
        "dbclone_a b",
        "dbclone_'; --",
        "dbclone_\u202e",
        "dbclone_\n2",
        "dbclone_",
    ],
)
def test_a_database_with_a_name_that_we_do_not_give_is_left_alone_and_shown_harmlessly(
    name: str, server: Server, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """S25, B6: also with a mark that would be good under another name."""
    with database(server, name):
        comment(server, name, json.dumps(good(server, name)))
        alone(server, name, options, capsys)


@examples(10)
@given(
    text=ANYTHING.map(lambda text: text.replace("\0", "")),
    values=st.dictionaries(
        st.sampled_from(["worker", "run", "host", "project", "fingerprint", "kind", "manifest"]),
        ANYTHING,
    ),
)
def test_whatever_the_comment_of_another_holds_status_shows_it_harmlessly(
    text: str,
    values: dict[str, Any],
    server: Server,
    look_alike: str,
    options: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """S25."""
    text = text.encode(errors="replace").decode()
    words = [
        word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)
    ]
    if "manifest" in values:
        values = {**values, "manifest": {str(values["manifest"]): "1"}}
    for found in (text, json.dumps(good(server, look_alike, **values))):
        comment(server, look_alike, found)
        capsys.readouterr()
        assert main(["status", "--manifest", *words]) == 0
        said = capsys.readouterr().out
        assert look_alike in said
        assert said == printable(said)
        said.encode()


@pytest.mark.parametrize(
    "what", ["truncated", "another database's", "another server's", "a megabyte", "for a terminal"]
)
def test_a_template_of_ours_with_such_a_comment_is_named_and_not_replaced(
    what: str, server: Server, settings: Settings, options: dict[str, str], tmp_path: Any
) -> None:
    """Somebody may be using it: who comes next is told its name and what to do."""
    (tmp_path / "s.sql").write_text("CREATE TABLE t (a int)")
    own = load(tmp_path, {**options, "name": f"m{uuid.uuid4().hex[:8]}", "schema": ["s.sql"]}, {})
    with worker(own, "gw0", "run") as clone:
        template = clone.template
    assert template.comment
    try:
        comment(server, template.name, corrupt(server, template.name)[what])
        with pytest.raises(NotOwned, match="has the name of our template and is not one") as caught:
            with worker(own, "gw0", "run"):
                pass
        assert template.name in caught.value.message
        assert str(caught.value) == printable(str(caught.value))
    finally:
        comment(server, template.name, template.comment)
        ddl.drop(server, template)


def test_a_name_that_the_output_cannot_encode_is_shown_all_the_same(
    project: Project, server: Server
) -> None:
    """Where standard output speaks ASCII, as in many containers."""
    with database(server, "dbclone_caf\xe9"):
        done = project.run("dbclone", "status", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "dbclone_caf\\xe9" in done.stdout


def test_an_error_obeys_no_terminal_and_keeps_its_lines() -> None:
    """S25."""
    error = NotOwned("a\x1b[2Jb", "one\ntwo\u202e \x9b31m", "é😀")
    assert str(error) == "a\\x1b[2Jb\nDETAIL:  one\n         two\\u202e \\x9b31m\nHINT:  é😀"
    assert error.message == "a\x1b[2Jb"


def test_roles_with_odd_names_get_hints_that_can_be_copied(
    server: Server, settings: Settings, options: dict[str, str]
) -> None:
    """S5: a person pastes a HINT into psql."""
    from dbclone.errors import PermissionMissing

    role = 'x" SUPERUSER; --'
    server.connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        with pytest.raises(PermissionMissing) as caught:
            Server.open(settings, server.dsn.replace(user=role))
        server.connection.execute(caught.value.hint.removeprefix("Run as a superuser: ").encode())
        assert server.fetch(
            "SELECT rolcreatedb, rolsuper FROM pg_roles WHERE rolname = %s", [role]
        ) == [(True, False)]
    finally:
        with contextlib.suppress(psycopg.errors.UndefinedObject):
            server.connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
