"""S7, S8: a password is in no error of dbclone, however it is spelled there and whoever said it."""

from __future__ import annotations

import pickle
import shlex
import subprocess
import sys
import traceback
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import peewee
import psycopg
import pytest

from dbclone.adapters import handles
from dbclone.adapters.peewee import PeeweeSchema
from dbclone.errors import BuildFailed, Error, SettingsError, redacted
from dbclone.schema.sources import Schema
from dbclone.server.dsn import Dsn, bound_environment
from dbclone.server.server import Server
from dbclone.settings import load

from ..spellings import SPELLINGS

SECRETS = [
    "s3cr3t-0af3",
    "p@ss/w:ord%41",
    "q'u\"o\\t`e$",
    ".*+?[(|)",
    "pässwörd €😀",
    "a b&c=d;e#f",
]


def told(error: BaseException) -> str:
    """Return all that an error and whatever hangs on it say, printed, pickled or not."""
    return f"{safe_str(error)}\n{pickle.loads(pickle.dumps(error))!r}\n{pickle.dumps(error).decode('utf-8', 'replace')}"


def told_by(things: Iterable[object]) -> str:
    return " ".join(f"{thing} {thing!r}" for thing in things)


def safe_str(error: BaseException) -> str:
    parts, waiting, seen = ["".join(traceback.format_exception(error))], [error], set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        for say in (
            str,
            repr,
            lambda e: told_by(e.args),
            lambda e: told_by(vars(e).values()),
            lambda e: str(getattr(e, "__notes__", "")),
        ):
            try:
                parts.append(say(found))
            except RuntimeError:  # one of them cannot be printed
                continue
        waiting += [
            e
            for e in (found.__cause__, found.__context__, *getattr(found, "exceptions", ()))
            if e is not None
        ]
    return "\n".join(parts)


def shows(text: str, secret: str) -> list[str]:
    return [how for how, spell in SPELLINGS.items() if spell(secret) in text]


@pytest.fixture(params=SECRETS, ids=[f"secret{number}" for number in range(len(SECRETS))])
def secret(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def dsn(server: Server, secret: str) -> Iterator[Dsn]:
    """An empty database; a password is given and not asked for."""
    name = f"empty_{uuid.uuid4().hex[:8]}"
    server.connection.execute(
        psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
    )
    yield server.database(name).replace(password=secret)
    server.connection.execute(
        psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name))
    )


def failure(made: Schema, dsn: Dsn) -> Error:
    """Return how a build fails, having looked at what it reports."""
    steps: list[str] = []
    with pytest.raises(Error) as caught:
        made.build(dsn.url, steps.append)
    assert steps
    assert not shows("\n".join(steps), dsn.get("password"))
    assert not shows(told(caught.value), dsn.get("password"))
    return caught.value


def schema(folder: Path, spec: str, **options: str) -> Schema:
    return handles.load(load(folder, {"schema": [spec], "inputs": [], **options}, {}))[0]


def test_a_command_may_print_its_whole_environment(tmp_path: Path, dsn: Dsn) -> None:
    (tmp_path / "fails.py").write_text(
        "import json, os, sys\nfor name, value in os.environ.items(): print(name, '=', value)\n"
        "print(dict(os.environ), json.dumps(dict(os.environ)))\nprint('x' * 100_000)\n"
        "sys.exit('cannot connect to ' + os.environ['DATABASE_URL'] + ' with ' +"
        " ascii(os.environ['PGPASSWORD']))\n"
    )
    error = failure(
        schema(tmp_path, f"{sys.executable} fails.py {shlex.quote(dsn.get('password'))}"), dsn
    )
    assert f"cannot connect to {dsn.shown} with '***'" in error.detail
    assert len(error.detail) < 11_000


def test_an_output_is_not_cut_within_a_password(tmp_path: Path, dsn: Dsn) -> None:
    (tmp_path / "fails.py").write_text(
        "import os, sys\nprint(os.environ['PGPASSWORD'] + 'x' * 9_996)\nsys.exit(1)\n"
    )
    detail = failure(schema(tmp_path, f"{sys.executable} fails.py"), dsn).detail
    assert f"{dsn.get('password')[-2:]}x" not in detail
    assert "**xxx" in detail


def test_a_command_may_carry_the_password_of_another_database(
    tmp_path: Path, server: Server
) -> None:
    encoded = quote(SECRETS[1], safe="")
    line = f"{sys.executable} -c 'import sys; sys.exit(sys.argv)' postgresql://u:{encoded}@h/d password={SECRETS[0]}"
    made = schema(tmp_path, line)
    assert not shows("\n".join(made.manifest()), SECRETS[0]) + shows(
        "\n".join(made.manifest()), SECRETS[1]
    )
    error = failure(made, server.dsn.replace(password=SECRETS[0]))
    assert not shows(told(error), SECRETS[1])
    assert "postgresql://u:***@h/d" in error.message


class Told(Exception):
    def __init__(self, url: str, *, because: str) -> None:
        super().__init__(because)
        self.url = url

    def __str__(self) -> str:
        return f"{self.args[0]} at {self.url}"


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class OwnError(Error):
    """A project's own subclass of ours, with another constructor."""

    def __init__(self, url: str) -> None:
        super().__init__("no", f"at {url}", "Look.")


def _chained(url: str) -> Exception:
    try:
        try:
            raise KeyError(url)
        except KeyError:
            raise OSError(2, "no such thing", url)  # noqa: B904  # what came before it is what this is about
    except OSError as error:
        found = ValueError("no secret here")
        found.__cause__ = error
        return found


def _noted(url: str) -> Exception:
    found = ValueError("no secret here")
    if sys.version_info >= (3, 11):
        found.add_note(f"the URL was {url}")
    else:
        found.args = (url,)
    return found


def _endless(url: str) -> Exception:
    found, other = ValueError(url), TypeError(url)
    found.__cause__, other.__cause__ = other, found
    return found


RAISED: dict[str, Callable[[str], BaseException]] = {
    "as its text": lambda url: ValueError(f"bad {url}"),
    "as its argument": lambda url: KeyError(url),
    "in an attribute": lambda url: Told(url, because="no"),
    "in what a program printed": lambda url: subprocess.CalledProcessError(
        1, ["x", url], output=url
    ),
    "by the driver": lambda url: psycopg.OperationalError(f"cannot connect to {url}"),
    "where nothing can be printed": lambda url: Untellable(url),
    "in its cause and context": _chained,
    "in a note": _noted,
    "in a ring of causes": _endless,
    "as an exit": lambda url: SystemExit(f"bad {url}"),
    "decoding": lambda url: UnicodeDecodeError("ascii", url.encode(), 0, 1, "no"),
    "as ours": lambda url: BuildFailed("no", url, "Look."),
    "as a kind of ours": OwnError,
}
if sys.version_info >= (3, 11):
    RAISED["in a group"] = lambda url: ExceptionGroup("several", [ValueError(url)])  # noqa: F821


@pytest.mark.parametrize("how", RAISED)
def test_a_callable_may_raise_its_url(tmp_path: Path, dsn: Dsn, how: str) -> None:
    """Its type and its traceback are told as text, and nothing that they must not tell."""
    assert shows(safe_str(RAISED[how](str(dsn.url))), dsn.get("password"))
    module = types.ModuleType(f"raising_{uuid.uuid4().hex[:8]}")
    module.__dict__["RAISED"] = RAISED[how]
    sys.modules[module.__name__] = module
    text = "def make(url):\n    raise RAISED(str(url))\n"
    exec(compile(text, tmp_path / "raising.py", "exec"), module.__dict__)  # noqa: S102
    try:
        error = failure(schema(tmp_path, f"{module.__name__}:make"), dsn)
    finally:
        del sys.modules[module.__name__]
    kind = type(RAISED[how](""))
    assert (error.__cause__, error.__context__) == (None, None)
    if not issubclass(kind, Error):
        assert kind.__name__ in error.message
        assert "in make" in error.detail


def test_where_there_is_no_password_an_error_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's objects are printed, which for a query set would be a query."""
    monkeypatch.delenv("PGPASSWORD", raising=False)

    class Lazy:
        def __repr__(self) -> str:
            raise AssertionError("printed")

    def fails(rows: Lazy) -> None:
        raise ValueError("no")

    for mask in (Dsn((("host", "h"),)).mask, Dsn((("password", "s3cr3t"),)).mask):
        with pytest.raises(ValueError, match="no") as caught:
            fails(Lazy())
        shown = redacted(caught.value, mask)
        assert (shown is caught.value) == (mask is str)
        assert "ValueError: no" in str(shown) or shown is caught.value


def test_sql_files_may_hold_the_password(tmp_path: Path, dsn: Dsn, secret: str) -> None:
    literal = psycopg.sql.Literal(secret).as_string(None)
    (tmp_path / "long.sql").write_text(f"SELECT nothing({literal});")
    assert "nothing" in failure(schema(tmp_path, "long.sql"), dsn).message
    (tmp_path / "psql.sql").write_text(f"\\connect {dsn.url}\n")
    assert "is a command of psql" in failure(schema(tmp_path, "psql.sql"), dsn).message
    (tmp_path / "raise.sql").write_text(
        f"DO $do$ BEGIN RAISE '%', {literal} USING DETAIL = {literal}, HINT = {literal}; END $do$"
    )
    error = failure(schema(tmp_path, "raise.sql"), dsn)
    assert error.message == "raise.sql:1: ***"


def test_models_may_hold_the_password(dsn: Dsn, secret: str) -> None:
    class Row(peewee.Model):  # type: ignore[misc]
        class Meta:
            constraints = [
                peewee.Check(
                    f"nothing = {psycopg.sql.Literal(secret).as_string(None)}".replace("%", "%%")
                )
            ]

    assert "nothing" in failure(PeeweeSchema((Row,)), dsn).message


@pytest.mark.parametrize(
    "spec", ["{name}:make", f"{sys.executable} {{name}}.py"], ids=["callable", "command"]
)
def test_pytest_shows_none_with_the_arguments_of_functions(
    tmp_path: Path, dsn: Dsn, secret: str, spec: str
) -> None:
    """pytest prints the arguments at both ends of each traceback, and with -lvv all variables."""
    name = f"showing_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(
        "def make(where):\n    raise ValueError('bad ' + where)\nassert __name__ != '__main__'\n"
    )
    made = schema(tmp_path, spec.replace("{name}", name), url=str(dsn.url))

    def build() -> Any:
        with pytest.raises(BuildFailed) as caught:
            made.build(dsn.url, lambda text: None)
        return caught

    shown = str(
        build().getrepr(style="long", showlocals=True, funcargs=True, truncate_locals=False)
    )
    assert "progress " in shown
    assert not shows(shown, secret)


def test_settings_that_hold_one_are_refused_without_it(tmp_path: Path, secret: str) -> None:
    url = f"postgresql://u:{quote(secret, safe='')}@h/d"
    with pytest.raises(SettingsError, match="which no environment variable is called") as caught:
        bound_environment([url], Dsn(()), {})
    assert not shows(told(caught.value), secret)
    for given_url in (
        f"{url}?nonsense=1",
        url.replace("@h", "@h:x"),
        f"host=h port=x password='{SPELLINGS['as libpq'](secret)}'",
    ):
        with pytest.raises(SettingsError) as caught:
            Server.open(load(tmp_path, {"url": given_url}, {}))
        assert not shows(told(caught.value), secret)
