"""URLs as values: parsed as libpq would, rendered for another database, and never shown with a password."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from dbclone.dsn import Dsn, bound_environment, parse
from dbclone.errors import SettingsError

TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(user=TEXT, password=TEXT, dbname=TEXT, options=TEXT)
def test_what_is_rendered_means_the_same_to_libpq(user: str, password: str, dbname: str, options: str) -> None:
    dsn = Dsn((("host", "h"), ("port", "5433"), ("user", user), ("password", password), ("dbname", dbname), ("options", options)))
    assert conninfo_to_dict(dsn.url) == dict(dsn.params)
    assert dict(parse(dsn.url).params) == dict(dsn.params)


@given(password=TEXT)
def test_a_password_is_in_the_url_alone(password: str) -> None:
    secret = f"s3cr3t{password}"
    dsn = Dsn((("host", "h"), ("user", "u"), ("password", secret), ("sslpassword", secret)))
    for shown in (repr(dsn), str(dsn), dsn.shown):
        assert "s3cr3t" not in shown
    assert parse(dsn.url).get("password") == secret


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "postgresql://u:p%40@h:1/db?sslmode=require",
            {"user": "u", "password": "p@", "host": "h", "port": "1", "dbname": "db", "sslmode": "require"},
        ),
        ("postgres://h/db", {"host": "h", "dbname": "db"}),
        ("postgresql+psycopg://u@h/db", {"user": "u", "host": "h", "dbname": "db"}),
        ("postgresql+psycopg2://u@h/db", {"user": "u", "host": "h", "dbname": "db"}),
        ("postgresql:///db?host=/tmp/x%20y", {"host": "/tmp/x y", "dbname": "db"}),
        ("postgresql://%2Ftmp/db", {"host": "/tmp", "dbname": "db"}),
        ("postgresql://[::1]:5/x", {"host": "::1", "port": "5", "dbname": "x"}),
        ("postgresql://a:1,b:2/x", {"host": "a,b", "port": "1,2", "dbname": "x"}),
        ("host=/tmp dbname=x password='a b'", {"host": "/tmp", "dbname": "x", "password": "a b"}),
    ],
)
def test_every_form_of_libpq_is_understood_and_survives_rendering(text: str, expected: dict[str, str]) -> None:
    dsn = parse(text)
    assert dict(dsn.params) == expected
    assert dict(parse(dsn.url).params) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "mysql://u:s3cr3t@h/x", "postgresql://u:s3cr3t@h@x/d", "postgresql://u:s3cr3t/x@h/d", "postgresql://u:%zz@s3cr3t/d",
        "postgresql://u:s3cr3t@h:port/d", "postgresql://u:s3cr3t@h:99999/d", "postgresql://u:s3cr3t\0@h/d", "postgresql://u:s3cr3t\n@h/d",
        "host=h password=s3cr3t nonsense", "postgresql://h/d?nonsense=s3cr3t",
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_without_being_repeated(text: str) -> None:
    """S7: also not by a chained exception."""
    with pytest.raises(SettingsError) as caught:
        parse(text, "url (from the test)")
    error = caught.value
    assert "url (from the test)" in str(error)
    assert "s3cr3t" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert "s3cr3t" not in str(pickle.loads(pickle.dumps(error)))


def test_only_the_database_changes() -> None:
    """S23."""
    dsn = parse("postgresql://u:p@h/db?sslmode=verify-full&options=-c%20x%3Dy&service=s")
    assert dict(dsn.replace(dbname="other").params) == {**dict(dsn.params), "dbname": "other"}
    assert dsn.with_defaults({"port": "5", "user": "z"}).get("user") == "u"
    assert dsn.with_defaults({"port": "5", "user": "z"}).get("port") == "5"


def test_variables_get_the_url_or_the_part_that_they_are_named_for() -> None:
    dsn = parse("postgresql://u:p@h:5/db")
    current = {"SQLALCHEMY_URL": "postgresql+asyncpg://old/old"}
    bound = bound_environment(
        ["DATABASE_URL", "SQLALCHEMY_URL", "PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD"], dsn, current
    )
    assert bound == {
        "DATABASE_URL": dsn.url, "SQLALCHEMY_URL": "postgresql+asyncpg://u:p@h:5/db",
        "PGHOST": "h", "PGPORT": "5", "PGDATABASE": "db", "PGUSER": "u", "PGPASSWORD": "p",
    }  # fmt: skip
    with pytest.raises(SettingsError):
        bound_environment(["not a name"], dsn, {})
