"""URLs as values: parsed as libpq would, rendered for another database, and never shown with a
password."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from dbclone.errors import SettingsError
from dbclone.server.dsn import Dsn, bound_environment, child_environment, mask_any, parse

from ...spellings import SPELLINGS

TEXT = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, blacklist_categories=("Cs", "Cc")),
    min_size=1,
    max_size=20,
)


@given(user=TEXT, password=TEXT, dbname=TEXT, options=TEXT)
def test_what_is_rendered_means_the_same_to_libpq(
    user: str, password: str, dbname: str, options: str
) -> None:
    dsn = Dsn(
        (
            ("host", "h"),
            ("port", "5433"),
            ("user", user),
            ("password", password),
            ("dbname", dbname),
            ("options", options),
        )
    )
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
            {
                "user": "u",
                "password": "p@",
                "host": "h",
                "port": "1",
                "dbname": "db",
                "sslmode": "require",
            },
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
def test_every_form_of_libpq_is_understood_and_survives_rendering(
    text: str, expected: dict[str, str]
) -> None:
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
        [
            "DATABASE_URL",
            "SQLALCHEMY_URL",
            "PGHOST",
            "PGPORT",
            "PGDATABASE",
            "PGUSER",
            "PGPASSWORD",
        ],
        dsn,
        current,
    )
    assert bound == {
        "DATABASE_URL": dsn.url, "SQLALCHEMY_URL": "postgresql+asyncpg://u:p@h:5/db",
        "PGHOST": "h", "PGPORT": "5", "PGDATABASE": "db", "PGUSER": "u", "PGPASSWORD": "p",
    }  # fmt: skip
    with pytest.raises(SettingsError):
        bound_environment(["not a name"], dsn, {})


def test_a_part_that_libpq_finds_itself_stays_in_its_variable() -> None:
    """Or else the server that PGHOST names would be lost as soon as an application wants that
    variable set."""
    dsn = Dsn((("dbname", "clone"),))
    assert bound_environment(
        ["PGHOST", "PGPASSWORD", "PGDATABASE"], dsn, {"PGHOST": "h", "PGPASSWORD": "p"}
    ) == {"PGDATABASE": "clone"}


def test_a_child_gets_what_leads_to_the_database_and_nothing_that_leads_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text(
        "[s]\nhost=h\nhostaddr=10.0.0.1\nuser=x\ndbname=y\npassword=p\nsslmode=require\n"
    )
    for name, value in {
        "PGSERVICEFILE": str(tmp_path / "services"),
        "PGSERVICE": "s",
        "PGSSLROOTCERT": "cert",
        "PGOPTIONS": "-c a=b",
    }.items():
        monkeypatch.setenv(name, value)
    kept = {"OTHER": "1", "PGSSLROOTCERT": "cert", "PGSSLMODE": "require"}

    def child(**parameters: str) -> dict[str, str]:
        found = child_environment(Dsn(tuple(parameters.items())), {**os.environ, "OTHER": "1"})
        return {
            k: v
            for k, v in found.items()
            if (k.startswith("PG") or k == "OTHER") and k != "PGSERVICEFILE"
        }

    assert child(host="h", user="u", dbname="d") == {
        **kept, "PGHOST": "h", "PGHOSTADDR": "10.0.0.1", "PGUSER": "u", "PGDATABASE": "d", "PGPASSWORD": "p",
    }  # fmt: skip
    assert child(host="other", port="5", dbname="d", sslmode="disable", options="-c c=d", password="q") == {
        **kept, "PGHOST": "other", "PGPORT": "5", "PGDATABASE": "d", "PGPASSWORD": "q",
        "PGSSLMODE": "disable", "PGOPTIONS": "-c c=d",
    }  # fmt: skip
    assert child(host="h", hostaddr="10.0.0.2", dbname="d")["PGHOSTADDR"] == "10.0.0.2"


@pytest.mark.parametrize("secret", ["s3cr3t", "q'u\"o\\t`e$", "a b&c=d;e#f"])
def test_a_url_is_printed_without_its_password(secret: str) -> None:
    dsn = parse(
        f"host=h user=u dbname=d password='{SPELLINGS['as libpq'](secret)}'"
        f" sslpassword='{SPELLINGS['as libpq'](secret)}'"
    )
    assert (dsn.get("password"), dsn.get("sslpassword")) == (secret, secret)
    for text in (
        repr(dsn),
        dsn.shown,
        repr(dsn.url),
        f"{[dsn.url]}",
        dsn.mask(dsn.url),
        dsn.mask(f"sslpassword={secret}"),
    ):
        assert "***" in text
        assert not [how for how, spell in SPELLINGS.items() if spell(secret) in text]
    assert type(pickle.loads(pickle.dumps(dsn.url))) is str
    assert parse(pickle.loads(pickle.dumps(dsn.url))) == dsn


WORDS = st.text(
    st.characters(
        min_codepoint=32,
        max_codepoint=0x1FFFF,
        blacklist_categories=("Cs", "Cc"),
        blacklist_characters="*",
    )
)


@given(before=WORDS, secret=WORDS, after=WORDS, how=st.sampled_from(list(SPELLINGS)))
def test_no_spelling_of_a_secret_passes(before: str, secret: str, after: str, how: str) -> None:
    assume(len(secret) >= 4 and secret not in "postgresql+psycopg://")
    spelled = SPELLINGS[how](secret)
    for key in ("password", "sslpassword"):
        text = Dsn(((key, secret),)).mask(f"{before}{spelled}{after}")
        assert spelled not in text
        assert "***" in text


def test_a_password_from_the_environment_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "s3cr3t")
    assert Dsn((("host", "h"),)).mask("it was s3cr3t") == "it was ***"


@pytest.mark.parametrize(
    ("secret", "text", "expected"),
    [
        ("", "a: 'b' =", "a: 'b' ="),
        ("a", "a table at postgresql://a:a@h/a", "a table at postgresql://a:***@h/a"),
        ("a", "password=a PGPASSWORD='a'", "password=*** PGPASSWORD='***'"),
        ("@", "u:%40@h is @ home", "u:***@h is @ home"),
        ("postgres", "postgresql+psycopg://u:postgres@h", "postgresql+psycopg://u:***@h"),
    ],
)
def test_a_short_or_common_password_leaves_the_text_legible(
    secret: str, text: str, expected: str
) -> None:
    assert Dsn((("password", secret),)).mask(text) == expected


def test_a_long_line_is_searched_in_one_go() -> None:
    """With patterns that look again from each letter, these would take hours."""
    for text in (
        "a" * 500_000,
        "a.b-" * 100_000,
        "x://" * 100_000,
        "password='" * 50_000,
        "s3cr3" * 100_000,
        "%" * 500_000,
    ):
        assert mask_any(Dsn((("password", "s3cr3t"),)).mask(text))
