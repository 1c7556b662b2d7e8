"""A connection URL as a value: parsed by us before libpq sees it, rendered for another database, never shown with its password.

libpq and psycopg quote the whole string, password included, in the errors of their own parsers, so nothing that a user typed
reaches them before `parse` has accepted it, and the errors raised here never carry the input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from .errors import SettingsError

_SCHEME = re.compile(r"^(postgres(?:ql)?)(\+[a-z0-9_]+)?://", re.I)
_HOST = re.compile(r"^[A-Za-z0-9_.:%-]*$")
_SECRET = ("password", "sslpassword")
_ESCAPES = "In a URL, write @ as %40, / as %2F, : as %3A and % as %25 inside a user name or a password."


@dataclass(frozen=True, repr=False)
class Dsn:
    """Where a database is: libpq connection parameters, in the order in which they were given.

    Attributes: `params`, pairs of libpq parameter names and values; see "Parameter Key Words" in the PostgreSQL documentation,
    libpq-connect.
    """

    params: tuple[tuple[str, str], ...]

    def get(self, key: str, default: str = "") -> str:
        """Return the value of one parameter, or `default`."""
        return dict(self.params).get(key, default)

    def replace(self, **changes: str) -> Dsn:
        """Return a copy with some parameters set; an empty string removes one. Everything else (sslmode, options, …) stays."""
        merged = {**dict(self.params), **changes}
        return Dsn(tuple((k, v) for k, v in merged.items() if v != ""))

    def with_defaults(self, defaults: Mapping[str, str]) -> Dsn:
        """Return a copy in which parameters that were not given have the values of `defaults`."""
        return self.replace(**{k: v for k, v in defaults.items() if v and not self.get(k)})

    @property
    def kwargs(self) -> dict[str, str]:
        """The parameters as keyword arguments for `psycopg.connect`."""
        return dict(self.params)

    @property
    def url(self) -> str:
        """The `postgresql://` URL, password included: for drivers, never for people."""
        return self._render(secrets=True)

    @property
    def shown(self) -> str:
        """The URL for people: a password is replaced by `***`."""
        return self._render(secrets=False)

    def _render(self, secrets: bool) -> str:
        rest = {k: v if secrets or k not in _SECRET else "***" for k, v in self.params}
        user, password, dbname = rest.pop("user", ""), rest.pop("password", ""), rest.pop("dbname", "")
        netloc = quote(user, safe="") + (":" + quote(password, safe="*") if password else "")
        if netloc:
            netloc += "@"
        host, port = rest.get("host", ""), rest.get("port", "")
        if "," not in host + port and host and not host.startswith(("/", "@")):
            rest.pop("host")
            rest.pop("port", None)
            netloc += f"[{host}]" if ":" in host else quote(host, safe="")
            netloc += f":{port}" if port else ""
        query = "&".join(f"{k}={quote(v, safe='/,')}" for k, v in rest.items())
        return f"postgresql://{netloc}/{quote(dbname, safe='')}" + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        return f"<Dsn {self.shown}>"


def parse(text: str, source: str = "url") -> Dsn:
    """Parse a libpq URL or key=value string.

    Arguments: `text`, as the user typed it; `source`, where it came from, for the error. `postgresql+psycopg://` (SQLAlchemy's
    form) is understood. Raises SettingsError, which never repeats the text.
    """
    import psycopg.conninfo

    def refuse(why: str) -> SettingsError:
        return SettingsError(
            f"{source} is not a usable PostgreSQL URL",
            f"{why} The value itself is not shown because it may contain a password.",
            f"Write it as postgresql://user:password@host:5432/database. {_ESCAPES}",
        )

    if "\0" in text or any(ord(c) < 32 for c in text):
        raise refuse("It contains a control character.")
    if not text.strip():
        raise refuse("It is empty.")
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme is None and "://" in text.split("=", 1)[0]:
        raise refuse("It does not start with postgresql://.")
    if scheme is not None:
        text = f"{scheme[1].lower()}://{text[scheme.end() :]}"
    try:
        parsed = psycopg.conninfo.conninfo_to_dict(text)
    except Exception:
        parsed = None
    if parsed is None:
        raise refuse("libpq cannot parse it.")
    params = tuple((k, str(v)) for k, v in parsed.items() if v is not None and str(v) != "")
    dsn = Dsn(params)
    for host in dsn.get("host").split(","):
        if not (host.startswith(("/", "@")) or _HOST.match(host)):
            raise refuse("Its host contains characters that no host has; most often an @ or / in the password was not escaped.")
    for port in dsn.get("port").split(","):
        if port and not (port.isdigit() and 0 < int(port) < 65536):
            raise refuse("Its port is not a number from 1 to 65535.")
    return dsn


def pg_environment(dsn: Dsn) -> dict[str, str]:
    """Return the PG* variables that point libpq programs at `dsn` ("Environment Variables", PostgreSQL documentation)."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {variable: dsn.get(key) for key, variable in names.items() if dsn.get(key)}


def bound_environment(names: Iterable[str], dsn: Dsn, current: Mapping[str, str]) -> dict[str, str]:
    """Return the values that bind the environment variables `names` to a database.

    A name such as PGHOST gets that part of it, any other name the URL; a driver in the present value (`postgresql+psycopg://`) is
    kept, because the application counts on it. Raises SettingsError for a name that cannot be one.
    """
    parts = pg_environment(dsn)
    bound = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SettingsError(
                f"env names {name!r}, which no environment variable is called", "", "Write a name such as DATABASE_URL."
            )
        if re.fullmatch(r"PG(HOST|PORT|USER|PASSWORD|DATABASE)", name):
            bound[name] = parts.get(name, "")
        else:
            driver = re.match(r"postgres(?:ql)?(\+\w+)://", current.get(name, ""))
            bound[name] = dsn.url.replace("postgresql://", f"postgresql{driver[1]}://", 1) if driver else dsn.url
    return bound
