"""The disk is full while a template is copied: what is needed, what is free and what a prune would
free; the server goes on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from dbclone.adapters import handles
from dbclone.clone.clone import Clone
from dbclone.databases.naming import clone_name
from dbclone.databases.prune import prune
from dbclone.errors import ServerError, TemplateError
from dbclone.server.private.embedded import Embedded
from dbclone.server.server import Server
from dbclone.settings import Settings, load
from dbclone.template.template import Template

from ..private import clear, public_folder

SCHEMA = """
BEGIN; CREATE TABLE item (id int, filler text); ALTER TABLE item ALTER filler SET STORAGE PLAIN;
INSERT INTO item SELECT i, repeat('x', 1900) FROM generate_series(1, 5000) AS i; COMMIT;
"""


@contextlib.contextmanager
def disk(options: dict[str, str], megabytes: int, schema: str = SCHEMA) -> Iterator[Settings]:
    """Settings of a project whose private server is on a disk of its own."""
    with public_folder() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "none", str(folder)],
            capture_output=True,
            text=True,
        )
        if mounted.returncode != 0:
            pytest.skip(f"a small disk cannot be made here: {mounted.stderr.strip()}")
        try:
            (folder / "schema.sql").write_text(schema)
            more = {
                "cache_dir": str(folder / "cache"),
                "data_dir": str(folder / "data"),
                "name": "full",
                "schema": "schema.sql",
            }
            found = load(folder, {**options, **more}, {})
            try:
                yield found
            finally:
                clear(Embedded.locate(found))
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small(options: dict[str, str]) -> Iterator[Settings]:
    """Settings of a project on a disk of 200 MB, whose template has about 17 MB."""
    with disk(options, 200) as found:
        yield found


def until_full(template: Template) -> tuple[list[Clone], TemplateError]:
    """Return the clones that there was room for, and the error of the one that there was none for."""
    made: list[Clone] = []
    try:
        while len(made) < 100:
            made.append(template.clone(f"gw{len(made)}", "run"))
    except TemplateError as error:
        return made, error
    raise AssertionError("the disk was never full")


def test_the_error_says_what_is_needed_what_is_free_and_what_a_prune_would_free(
    small: Settings,
) -> None:
    """B7."""
    with Server.open(small) as server:
        assert server.embedded is not None
        assert server.embedded.cluster.data.is_relative_to(small.root), (
            "the data are on the small disk"
        )
        template = Template.ensure(server, handles.load(small)[0])
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
            server.leases.release(clone.name)
        with pytest.raises(TemplateError) as caught:
            template.clone("one more")
        told = re.search(r"prune would free (\d+) MB", caught.value.hint)
        assert told is not None
        dropped = prune(server, template.name, sizes=True)
        assert len(dropped) == len(made) - 1
        assert (
            int(told[1]) == round(sum(database.bytes for database, _ in dropped) / 2**20) > needed
        )
        with template.clone("after") as after, after.connect() as connection:
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (5000,)
        assert server.fetch("SELECT count(*) FROM pg_database") < before
        made[0].drop()


def test_a_disk_that_holds_no_copy_is_an_error_of_ours_at_each_step(
    options: dict[str, str],
) -> None:
    """CREATE DATABASE says of a full disk only that a checkpoint failed."""
    said = []
    with disk(options, 70, "CREATE TABLE item (id int)") as settings:
        filler = settings.root / "filler"
        for left in (0, 4):
            with Server.open(settings) as server:
                assert server.embedded is not None
                free = shutil.disk_usage(settings.root).free
                with open(filler, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(1, free - left * 2**20))
                with pytest.raises(
                    TemplateError, match=r"no space is left on the private server to (build|copy)"
                ) as caught:
                    with Template.ensure(server, handles.load(settings)[0]).clone("gw0", "run"):
                        raise AssertionError("there was room")
                said.append(caught.value.message)
                assert "MB are free" in caught.value.message
                filler.unlink()
    assert len(said) == 2


@pytest.mark.parametrize("left", [0, 1, 20])
def test_a_disk_that_holds_no_new_server_is_named_as_full(
    options: dict[str, str], left: int
) -> None:
    with disk(options, 60) as settings:
        Embedded.locate(settings)  # its cache folder is there
        with open(settings.root / "filler", "wb") as file:
            os.posix_fallocate(
                file.fileno(), 0, shutil.disk_usage(settings.root).free - left * 2**20
            )
        with pytest.raises(ServerError, match="no space is left") as caught:
            Server.open(settings)
        assert "Make room there" in caught.value.hint
        assert not [
            path
            for path in settings.root.rglob("*")
            if path.name.endswith(".new") or path.name.startswith("initdb.")
        ]


@pytest.mark.parametrize("what", ["data", "cache"])
def test_a_disk_that_has_become_read_only_is_named(options: dict[str, str], what: str) -> None:
    with disk(options, 200) as settings:
        elsewhere = Embedded.locate(settings).disk
        if what == "data":
            settings = load(
                settings.root,
                {
                    **options,
                    "data_dir": settings.data_dir,
                    "cache_dir": "/var/tmp/" + elsewhere.name,
                },
                {},
            )
        Server.open(settings).close()
        subprocess.run(["mount", "-o", "remount,ro", str(settings.root)], check=True)
        try:
            with pytest.raises(ServerError, match="its file system is read-only") as caught:
                Server.open(settings)
            assert str(settings.root) in caught.value.message
            assert "Set cache_dir or data_dir" in caught.value.hint
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(settings.root)], check=True)
            shutil.rmtree("/var/tmp/" + elsewhere.name, ignore_errors=True)
