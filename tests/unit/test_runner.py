"""Where the server is, said before the first test: nobody is led elsewhere by a variable without
seeing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbclone.errors import SettingsError
from dbclone.runner import target
from dbclone.server.server import external
from dbclone.settings import load

PG = {
    "PGHOST": "db.example",
    "PGPORT": "5433",
    "PGUSER": "ann",
    "PGPASSWORD": "s3cr3t",
    "PGDATABASE": "shop",
}


def test_libpqs_variables_and_their_service_are_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S24."""
    for name, value in PG.items():
        monkeypatch.setenv(name, value)
    assert (
        target(load(tmp_path, {}, {}))
        == "server at host db.example, port 5433, user ann (from PG variables)"
    )
    (tmp_path / "services").write_text("[s]\nhost=other.example\nuser=bob\npassword=s3cr3t\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "s")
    assert (
        target(load(tmp_path, {}, {}))
        == "server at host other.example, port 5433, user bob (from PG variables)"
    )


def test_a_url_wins_and_the_private_server_follows_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S24, S8: without the URL itself."""
    monkeypatch.setenv("PGPORT", "5433")
    assert target(load(tmp_path, {}, {})) == "private server"
    monkeypatch.setenv("PGHOST", "db.example")
    url = "postgresql://ann:s3cr3t@h:1/x?hostaddr=10.0.0.1"
    assert (
        target(load(tmp_path, {"url": url}, {}))
        == "server at host h, hostaddr 10.0.0.1, port 1, user ann (from the option --url)"
    )


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://ann@evil.example/shop", True),
        ("host=evil.example dbname=shop", True),
        ("postgresql://ann@/shop?host=/tmp/evil", True),
        ("postgresql:///shop?hostaddr=10.0.0.1", True),
        ("postgresql:///shop?port=6543", True),
        ("postgresql:///shop", False),  # then it is libpq's variables that name the server
        ("postgresql://ann:own@db.example/shop", False),
    ],
)
@pytest.mark.parametrize("secret", ["PGPASSWORD", "PGSERVICE"])
def test_no_password_of_the_environment_goes_to_a_server_that_only_a_file_names(
    url: str, named: bool, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[tool.dbclone]\nurl = "{url}"\n')
    (tmp_path / "services").write_text("[s]\nhost=db.example\npassword=s3cr3t\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv(secret, "s" if secret == "PGSERVICE" else "s3cr3t")
    if named:
        with pytest.raises(SettingsError) as caught:
            external(load(tmp_path, {}, {}))
        assert (
            f"the password in {secret} is not sent to a server that only"
            f" {tmp_path}/pyproject.toml names" in caught.value.message
        )
        assert "DBCLONE_URL" in caught.value.hint
        assert "PGPASSFILE" in caught.value.hint
        assert "s3cr3t" not in str(caught.value)
    else:
        assert external(load(tmp_path, {}, {})) is not None
    for options, environ in (({"url": url}, {}), ({}, {"DBCLONE_URL": url})):
        assert external(load(tmp_path, options, environ)) is not None


def test_a_service_named_with_another_host_does_not_give_its_password_away(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dbclone]\nurl = "postgresql://evil.example/shop?service=s"\n'
    )
    with pytest.raises(SettingsError, match="the password in the service in url is not sent"):
        external(load(tmp_path, {}, {}))
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dbclone]\nurl = "postgresql:///shop?service=s"\n'
    )
    assert external(load(tmp_path, {}, {})) is not None
