"""A server that speaks another language than the code was written in."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from dbclone import PermissionMissing, ResetBlocked, ServerNotFound
from dbclone.clone.clone import Clone
from dbclone.server.server import Server
from dbclone.settings import Settings

from ...oracle import fingerprint
from ...shop import cloned, identity

LANGUAGE = "de_DE.UTF-8"


@pytest.fixture
def locales() -> Iterator[Path]:
    """A folder that the server's account may read, too."""
    with tempfile.TemporaryDirectory(prefix="dbclone-locales-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def german(own: Settings, locales: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A private server whose messages are German, also those to who may not enter."""
    compiler = shutil.which("localedef")
    if compiler is None:
        pytest.skip("there is no localedef to make a German locale")
    made = subprocess.run(
        [compiler, "-i", "de_DE", "-f", "UTF-8", locales / LANGUAGE],
        capture_output=True,
        text=True,
    )
    if not (locales / LANGUAGE).exists():
        pytest.skip(f"localedef makes no German locale: {made.stderr}")
    for folder in (locales, locales / LANGUAGE):
        folder.chmod(0o755)  # the server may run as another account
    monkeypatch.setenv("LOCPATH", str(locales))
    with Server.open(own) as server:
        try:
            server.connection.execute(f"ALTER SYSTEM SET lc_messages = '{LANGUAGE}'".encode())
        except psycopg.errors.InvalidParameterValue as error:
            pytest.skip(f"this server knows no German: {error}")
        server.connection.execute("SELECT pg_reload_conf()")
        with (
            pytest.raises(psycopg.errors.DivisionByZero) as caught,
            server.connect("postgres", "a look") as look,
        ):
            look.execute("SELECT 1/0")
        if "Division durch Null" not in str(caught.value):
            pytest.skip("this server was built without translations")
        yield server


def refused(server: Server, **changed: str) -> str:
    with pytest.raises(ServerNotFound) as caught:
        Server.open(replace(server.settings, url=server.dsn.replace(**changed).url))
    return caught.value.detail


def test_all_of_it_in_german(german: Server, tmp_path: Path) -> None:
    """E17: what dbclone decides does not depend on the text of a message; what it cannot tell from
    a code it hands on as it is."""
    with cloned(german, german.settings, tmp_path, lock_timeout=0.3) as clone:
        truth = fingerprint(clone.url)
        for reset in ("rollback", "truncate", "clone", "drop", "truncate"):
            with clone.isolated(reset, reset, reset_sequences=True) as isolation:
                isolation.execute("INSERT INTO parent (name) VALUES ('a')")
                isolation.execute("DELETE FROM city")
                with pytest.raises(psycopg.Error, match=r"durch Null|bricht|verletzt"):
                    isolation.execute("SELECT 1/0")
            if reset != "drop":
                assert fingerprint(clone.url) == truth
        _blocked(clone)
        before = identity(clone)
        with clone.isolated("truncate", "ddl") as isolation:
            isolation.execute("ALTER TABLE child ADD COLUMN extra int")
        assert identity(clone) != before
        with clone.isolated("rollback", "lost") as isolation:
            isolation.connection.pgconn.exec_(b"COMMIT")
        assert any("ended the outer transaction" in note for note in clone.report.notes)
        assert fingerprint(clone.url) == truth
    assert not german.fetch(
        "SELECT FROM pg_database WHERE datname ~ '^dbclone_' AND NOT datistemplate"
    )


def _blocked(clone: Clone) -> None:
    left = psycopg.connect(clone.url)

    def test() -> None:
        with clone.isolated("truncate", "a test"):
            left.execute("INSERT INTO parent (name) VALUES ('left')")

    with pytest.raises(ResetBlocked, match=r"0\.3 s") as caught:
        test()
    assert "idle in transaction" in caught.value.detail
    left.close()


def test_who_may_not_enter_is_told_so_in_german(german: Server) -> None:
    """E17: and who may not enter the maintenance database works in the URL's own."""
    assert "existiert nicht" in refused(german, user="nobody_at_all")
    german.connection.execute("CREATE ROLE plain LOGIN CREATEDB")
    german.connection.execute("CREATE DATABASE its_own")
    german.connection.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    with Server.open(
        replace(german.settings, url=german.dsn.replace(user="plain", dbname="its_own").url)
    ) as opened:
        assert opened.connection.info.dbname == "its_own"
    german.connection.execute("ALTER ROLE plain NOCREATEDB")
    with pytest.raises(PermissionMissing, match="may not create databases"):
        Server.open(
            replace(german.settings, url=german.dsn.replace(user="plain", dbname="its_own").url)
        )
