"""The environment of a program that builds a schema: every variable of it that names a database
names the one being built.

A program finds its database by variables of many names and forms, and what a `.env` file says
counts only where the environment says nothing. So each name that has the look of a database, in
either place, gets the build's value; no other value of a `.env` file is passed on. What libpq would
follow beside variables, a service or a file of passwords, is taken away.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from ..errors import SettingsError
from ..server.dsn import Dsn, bound_environment, child_environment, parse, with_libpq_defaults
from ..settings import Settings

#: Files of variables that programs load by themselves, where the environment has none of the name.
ENV_FILES = (
    ".env", ".env.local", ".env.development", ".env.dev", ".env.test", ".flaskenv", ".envrc",
)  # fmt: skip
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*[=:]\s*(.*?)\s*$", re.M)
# The names that dj-database-url, django-environ and SQLAlchemy have for PostgreSQL.
_URL = re.compile(r"^\s*(postgres(?:ql)?(?:\+\w+)?|postgis|psql|pgsql|timescale(?:gis)?)://", re.I)
_JDBC = re.compile(r"^\s*jdbc:postgresql:", re.I)
_CONNINFO = re.compile(r"(?:^|\s)dbname\s*=")
_PART = re.compile(
    r"(?:.*_)?(?:POSTGRES(?:QL)?|PG|PSQL|DB|DATABASE|SQL|RDS)_"
    r"(?:(?P<host>HOST|HOSTNAME)|(?P<port>PORT)|(?P<dbname>DB|NAME|DBNAME|DB_NAME|DATABASE)|(?P<user>USER|USERNAME)"
    r"|(?P<password>PASSWORD|PASS|PASSWD))",
    re.I,
)
_OTHERS = re.compile(
    r"MYSQL|MARIA|MONGO|REDIS|ORACLE|MSSQL|SQLITE|CLICKHOUSE|CASSANDRA|NEO4J", re.I
)


def file_variables(root: Path) -> dict[str, str]:
    """Return the variables that the `.env` files of a folder set;
    a file that cannot be read sets none."""
    found: dict[str, str] = {}
    for name in ENV_FILES:
        with contextlib.suppress(OSError):
            text = (root / name).read_text(encoding="utf-8", errors="replace")
            found |= {key: value.strip("'\"") for key, value in _ASSIGNMENT.findall(text)}
    return found


def place_in_form(name: str, value: str, dsn: Dsn) -> str | None:
    """Return where `dsn` leads in the form that a variable has now, or None if the variable names
    no PostgreSQL database.

    A URL keeps its scheme and driver, `jdbc:postgresql:` and `dbname=… host=…` their form; a
    variable called like DB_HOST or POSTGRES_PASSWORD gets that part, which is empty where there is
    none.
    """
    if scheme := _URL.match(value):
        return dsn.url.replace("postgresql", scheme[1], 1)
    full = with_libpq_defaults(dsn)
    if _JDBC.match(value):
        return _jdbc(full)
    if _CONNINFO.search(value):
        with contextlib.suppress(SettingsError):
            parse(value)
            from psycopg.conninfo import make_conninfo

            return make_conninfo("", **dsn.kwargs)
    part = _PART.fullmatch(name)
    if part is None or _OTHERS.search(name):
        return None
    return full.get(str(part.lastgroup))


def _jdbc(dsn: Dsn) -> str:
    """Return the URL for Java's driver, which knows no sockets: there it leads to a database that
    its default server has not."""
    host = "" if dsn.get("host").startswith(("/", "@")) else dsn.get("host")
    port = f":{dsn.get('port')}" if host and dsn.get("port") else ""
    query = "&".join(
        f"{key}={quote(dsn.get(key), safe='')}" for key in ("user", "password") if dsn.get(key)
    )
    return f"jdbc:postgresql://{host}{port}/{quote(dsn.get('dbname'), safe='')}?{query}"


def _led(settings: Settings, dsn: Dsn, current: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment, but for libpq's files."""
    named = {**file_variables(settings.root), **current}
    environ = child_environment(dsn, current)
    for name in named.keys() - set(settings.env):
        place = place_in_form(name, named[name], dsn)
        if place is not None:
            environ[name] = place
    environ.update(bound_environment(settings.env, dsn, named))
    # The programs of the environment that runs us, whether or not it has been activated.
    environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]
    )
    return environ


@contextlib.contextmanager
def program_environment(settings: Settings, dsn: Dsn) -> Iterator[dict[str, str]]:
    """Give, for the block, the environment in which a program that builds a schema finds the
    database at `dsn` and no other.

    Where only libpq's file of passwords has the one for `dsn`, the program gets a file with that
    line alone, else none at all: a program that goes elsewhere finds no password there. A service
    that it names is not found either (PostgreSQL documentation, libpq-pgpass and libpq-pgservice).
    Raises SettingsError for a name in `env` that cannot be one, psycopg.Error.
    """
    environ = _led(settings, dsn, os.environ)
    with tempfile.TemporaryDirectory(prefix="dbclone-") as folder:
        passwords = Path(folder) / "passwords"
        if not (dsn.get("password") or environ.get("PGPASSWORD")) and (password := _of_file(dsn)):
            line = [dsn.get("dbname"), dsn.get("user") or "*", password]
            passwords.touch(0o600)
            passwords.write_text(
                ":".join(["*", "*", *(re.sub(r"([:\\])", r"\\\1", part) for part in line)]) + "\n"
            )
        environ |= {"PGPASSFILE": str(passwords), "PGSERVICEFILE": str(Path(folder) / "services")}
        yield environ


def _of_file(dsn: Dsn) -> str:
    """Return the password that libpq finds in its file for `dsn`, and that the server asked for;
    empty if there is none."""
    if not os.path.exists(os.environ.get("PGPASSFILE") or os.path.expanduser("~/.pgpass")):
        return ""
    from ..server.connection import connect

    with connect(dsn) as connection:
        return connection.info.password
