"""The disk is full while a template is copied: what is needed, what is free and what a prune would free; the server goes on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from dbclone import adapters
from dbclone.clone import Clone
from dbclone.embedded import Embedded
from dbclone.errors import TemplateError
from dbclone.marks import clone_name
from dbclone.prune import prune
from dbclone.server import Server
from dbclone.settings import Settings, load
from dbclone.template import Template

from ..private import clear, public_folder

SCHEMA = """
BEGIN; CREATE TABLE item (id int, filler text); ALTER TABLE item ALTER filler SET STORAGE PLAIN;
INSERT INTO item SELECT i, repeat('x', 1900) FROM generate_series(1, 5000) AS i; COMMIT;
"""


@pytest.fixture
def small(options: dict[str, str]) -> Iterator[Settings]:
    """Settings of a project whose private server is on a disk of 200 MB, and whose template has about 17 MB."""
    with public_folder() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200m,mode=0755", "none", str(folder)], capture_output=True, text=True
        )
        if mounted.returncode != 0:
            pytest.skip(f"a small disk cannot be made here: {mounted.stderr.strip()}")
        try:
            (folder / "schema.sql").write_text(SCHEMA)
            more = {"cache_dir": str(folder / "cache"), "data_dir": str(folder / "data"), "name": "full", "schema": "schema.sql"}
            found = load(folder, {**options, **more}, {})
            try:
                yield found
            finally:
                clear(Embedded.locate(found))
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def until_full(template: Template) -> tuple[list[Clone], TemplateError]:
    """Return the clones that there was room for, and the error of the one that there was none for."""
    made: list[Clone] = []
    try:
        while len(made) < 100:
            made.append(template.clone(f"gw{len(made)}", "run"))
    except TemplateError as error:
        return made, error
    raise AssertionError("the disk was never full")


def test_the_error_says_what_is_needed_what_is_free_and_what_a_prune_would_free(small: Settings) -> None:
    """B7."""
    with Server.open(small) as server:
        assert server.embedded is not None
        assert server.embedded.cluster.data.is_relative_to(small.root), "the data are on the small disk"
        template = Template.ensure(server, adapters.load(small)[0])
        made, error = until_full(template)
        assert len(made) > 1
        found = re.search(r"that needs (\d+) MB, (\d+) MB are free", error.message)
        assert found is not None, error
        needed, free = map(int, found.groups())
        ((size,),) = server.fetch("SELECT pg_database_size(%s)", [template.name])
        assert needed == round(size / 2**20) > 10
        assert free < needed
        assert "would free 0 MB" in error.hint, "every clone is in use"
        before = server.fetch("SELECT count(*) FROM pg_database")
        assert clone_name("full", "run", f"gw{len(made)}") not in {
            name for (name,) in server.fetch("SELECT datname::text FROM pg_database")
        }
        with made[0].isolated("truncate") as isolation:  # those that there are go on
            assert isolation.execute("SELECT count(*) FROM item").fetchone() == (5000,)

        for clone in made[1:]:  # as if their owners had died
            server.leases.give_up(clone.name)
        with pytest.raises(TemplateError) as caught:
            template.clone("one more")
        told = re.search(r"prune would free (\d+) MB", caught.value.hint)
        assert told is not None
        dropped = prune(server, template.name, sizes=True)
        assert len(dropped) == len(made) - 1
        assert int(told[1]) == round(sum(database.bytes for database, _ in dropped) / 2**20) > needed
        with template.clone("after") as after, after.connect() as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (5000,)
        assert server.fetch("SELECT count(*) FROM pg_database") < before
        made[0].drop()
