"""Templates of ours that are not good enough any more: replaced under the same name, and why says what was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from dbclone import adapters, databases
from dbclone.errors import TemplateError
from dbclone.server import Server
from dbclone.settings import load
from dbclone.template import Template

if TYPE_CHECKING:
    from conftest import Project


@pytest.fixture
def shop(project: Project, options: dict[str, str]) -> Iterator[Server]:
    """The server as a project sees it whose schema wants an extension."""
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text("CREATE EXTENSION citext; CREATE TABLE item (name citext);")
    with Server.open(load(project.folder, options, {})) as opened:
        yield opened


def ensure(server: Server) -> Template:
    return Template.ensure(server, adapters.load(server.settings)[0])


def alter(server: Server, statement: str, name: str) -> None:
    server.connection.execute(sql.SQL(statement).format(sql.Identifier(name)))  # type: ignore[arg-type]


def test_the_mark_tells_the_extensions_and_a_new_default_version_builds_anew(project: Project, shop: Server) -> None:
    """The fingerprint is known before the build, the extensions after it; so the mark is compared with what the server has now."""
    first = ensure(shop)
    mark = first.database.mark
    assert mark is not None
    ((version,),) = shop.fetch("SELECT default_version FROM pg_available_extensions WHERE name = 'citext'")
    assert mark.manifest["extension citext"] == version
    databases.comment(shop, first.name, replace(mark, manifest={**mark.manifest, "extension citext": "0.9"}))
    second = ensure(shop)
    assert (second.built, second.why) == (True, (f"extension citext was 0.9, is {version}",))
    assert not ensure(shop).built
    assert project.databases(shop) == [second.name]


def test_an_extension_that_the_schema_wants_in_an_older_version_is_not_built_again_and_again(
    project: Project, shop: Server
) -> None:
    (project.folder / "schema.sql").write_text("CREATE EXTENSION citext VERSION '1.4';")
    assert ensure(shop).built
    again = ensure(shop)
    assert not again.built
    assert again.database.mark is not None
    assert again.database.mark.manifest["extension citext"].startswith("1.4, default ")


def test_a_template_that_is_not_sealed_any_more_is_replaced(project: Project, shop: Server) -> None:
    """As when a prune was killed between its two statements, or somebody opened the template to write to it."""
    for statement in ("ALTER DATABASE {} IS_TEMPLATE false", "ALTER DATABASE {} ALLOW_CONNECTIONS true"):
        before = ensure(shop)
        alter(shop, statement, before.name)
        after = ensure(shop)
        assert (after.built, after.why) == (True, ("the template was not sealed any more",))
        assert after.database.oid != before.database.oid
        assert project.databases(shop) == [after.name]


def test_a_template_whose_drop_was_interrupted_is_replaced(project: Project, shop: Server) -> None:
    """B13: such a database can only be dropped."""
    before = ensure(shop)
    alter(shop, "ALTER DATABASE {} IS_TEMPLATE false", before.name)
    shop.fetch("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s RETURNING 1", [before.name])
    after = ensure(shop)
    assert (after.built, after.why) == (True, ("a DROP of the template was interrupted",))
    assert project.databases(shop) == [after.name]


def test_an_opened_template_with_somebody_in_it_is_an_error_that_says_so(project: Project, shop: Server) -> None:
    before = ensure(shop)
    alter(shop, "ALTER DATABASE {} ALLOW_CONNECTIONS true", before.name)
    with shop.connect(before.name, "visitor"):
        with pytest.raises(TemplateError, match="cannot be replaced: somebody is connected to it"):
            ensure(shop)
    assert project.databases(shop) == [before.name]
