"""A connection URL as a value: parsed by us before libpq sees it, rendered for another database,
never shown with its password.

libpq and psycopg quote the whole string, password included, in the errors of their own parsers, so
nothing that a user typed reaches them before `parse` has accepted it, and the errors raised here
never carry the input.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import quote

from ..errors import SettingsError, redacted

Build = TypeVar("Build", bound=Callable[..., None])
_SCHEME = re.compile(r"^(postgres(?:ql)?)(\+[a-z0-9_]+)?://", re.I)
_HOST = re.compile(r"^[A-Za-z0-9_.:%-]*$")
_SECRET = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
# Parameters that say where a session leads
_PLACE = ("host", "hostaddr", "port", "user", "dbname", "service", "options")
_URL_SECRET = re.compile(r"([a-z][a-z0-9+.-]{0,30}://[^\s/:@'\"]{0,200}:)[^\s'\"]{1,500}@", re.I)
_KEY_SECRET = re.compile(r"(password=)(?:'[^']{0,500}'|[^\s'\"&]{1,500})", re.I)
_URL_START = r"\bpostgres(?:ql)?(?:\+\w+)?://"
_ESCAPES = (
    "In a URL, write @ as %40, / as %2F, : as %3A and % as %25 inside a user name or a password."
)


class _Url(str):
    """A URL that shows itself without its password wherever a value is printed for people, as
    pytest prints arguments."""

    shown: str

    def __repr__(self) -> str:
        return repr(self.shown)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


@dataclass(frozen=True, repr=False)
class Dsn:
    """Where a database is: libpq connection parameters, in the order in which they were given.

    Attributes: `params`, pairs of libpq parameter names and values; see "Parameter Key Words" in
    the PostgreSQL documentation, libpq-connect.
    """

    params: tuple[tuple[str, str], ...]

    def get(self, key: str, default: str = "") -> str:
        """Return the value of one parameter, or `default`."""
        return dict(self.params).get(key, default)

    def replace(self, **changes: str) -> Dsn:
        """Return a copy with some parameters set; an empty string removes one. Everything else
        (sslmode, options, …) stays."""
        merged = {**dict(self.params), **changes}
        return Dsn(tuple((k, v) for k, v in merged.items() if v != ""))

    def with_defaults(self, defaults: Mapping[str, str]) -> Dsn:
        """Return a copy in which parameters that were not given have the values of `defaults`."""
        return self.replace(**{k: v for k, v in defaults.items() if v and not self.get(k)})

    @property
    def kwargs(self) -> dict[str, str]:
        """The parameters as keyword arguments for `psycopg.connect`."""
        return dict(self.params)

    @functools.cached_property
    def url(self) -> str:
        """The `postgresql://` URL, password included: for drivers, never for people. Its `repr` is
        that of `shown`."""
        url = _Url(self._render(secrets=True))
        url.shown = self.shown
        return url

    @functools.cached_property
    def shown(self) -> str:
        """The URL for people: a password is replaced by `***`."""
        return self._render(secrets=False)

    @property
    def mask(self) -> Callable[[str], str]:
        """A function that returns a text with the secrets in it replaced by `***`: for what others
        say, such as an exception.

        They are this Dsn's and the password that libpq's variables name, as they are and as a URL,
        SQL, JSON or Python spells them. One of fewer than four characters is hidden only where a
        URL, an assignment or quotes hold it, because it is in many words.
        """
        secrets = [value for key, value in self.params if key in _SECRET]
        secrets += [value for key, _, value, _ in _libpq() if key in _SECRET]
        spelled = {
            pattern: secret for secret in secrets if secret for pattern in _spellings(secret)
        }
        if not spelled:
            return str
        # The longest first; and "postgres" is no secret where a URL starts with it.
        patterns = sorted(spelled, key=lambda pattern: ("://" not in pattern, -len(pattern)))
        patterns.insert(sum("://" in pattern for pattern in patterns), f"(?P<start>{_URL_START})")
        found = re.compile("|".join(patterns))
        return lambda text: found.sub(lambda match: match["start"] or "***", text)

    def _render(self, secrets: bool) -> str:
        rest = {k: v if secrets or k not in _SECRET else "***" for k, v in self.params}
        user, password, dbname = (
            rest.pop("user", ""),
            rest.pop("password", ""),
            rest.pop("dbname", ""),
        )
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

    Arguments: `text`, as the user typed it; `source`, where it came from, for the error.
    `postgresql+psycopg://` (SQLAlchemy's form) is understood. Raises SettingsError, which never
    repeats the text.
    """
    found = _parsed(text)
    del text  # pytest prints the variables of whoever raises
    if isinstance(found, Dsn):
        return found
    raise SettingsError(
        f"{source} is not a usable PostgreSQL URL",
        f"{found} The value itself is not shown because it may contain a password.",
        f"Write it as postgresql://user:password@host:5432/database. {_ESCAPES}",
    )


def _parsed(text: str) -> Dsn | str:
    """Return what a URL says, or why it says nothing."""
    import psycopg.conninfo

    if any(ord(c) < 32 for c in text):
        return "It contains a control character."
    if not text.strip():
        return "It is empty."
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme is None and "://" in text.split("=", 1)[0]:
        return "It does not start with postgresql://."
    if scheme is not None:
        # SQLAlchemy renders a space as it is, which libpq 17 refuses or, at an end, drops.
        text = f"{scheme[1].lower()}://{text[scheme.end() :].replace(' ', '%20')}"
    try:
        parsed = psycopg.conninfo.conninfo_to_dict(text)
    except Exception:
        parsed = None
    if parsed is None:
        return "libpq cannot parse it."
    params = tuple((k, str(v)) for k, v in parsed.items() if v is not None and str(v) != "")
    dsn = Dsn(params)
    for host in dsn.get("host").split(","):
        if not (host.startswith(("/", "@")) or _HOST.match(host)):
            return (
                "Its host contains characters that no host has; most often an @ or / in the"
                " password was not escaped."
            )
    for port in dsn.get("port").split(","):
        if port and not (port.isdigit() and 0 < int(port) < 65536):
            return "Its port is not a number from 1 to 65535."
    return dsn


def _spellings(secret: str) -> set[str]:
    """Return patterns that match `secret` as it is, percent-encoded wholly or in part, and escaped
    for SQL, JSON, libpq, Python."""

    def encoded(letter: str) -> str:
        # %% is how a .ini file says %, %25 how a URL inside a URL does.
        in_url = "".join(f"%(?:%|25)?(?i:{byte:02x})" for byte in letter.encode(errors="replace"))
        return f"(?:{re.escape(letter)}|{in_url}{'|[+]' if letter == ' ' else ''})"

    escaped = {
        secret.replace("'", "''"),
        secret.replace("%", "%%"),
        re.sub(r"(['\\])", r"\\\1", secret),
    }
    escaped |= {repr(secret)[1:-1], ascii(secret)[1:-1], json.dumps(secret)[1:-1]}
    found = {"".join(map(encoded, secret)), *map(re.escape, escaped)}
    if len(secret) < 4:
        return {f"(?:(?<=[:=]){p}(?=[@&;,)\\s'\"]|$)|(?<=['\"]){p}(?=['\"]))" for p in found}
    return found


def mask_any(text: str) -> str:
    """Return `text` without the password of any URL or of any `password=`: for what a user wrote
    that may name other databases."""
    return _KEY_SECRET.sub(r"\1***", _URL_SECRET.sub(r"\1***@", text))


def redacting(build: Build) -> Build:
    """Wrap a schema's `build`: nothing that it raises or reports shows the password of its URL."""

    @functools.wraps(build)
    def wrapped(self: Any, url: str, progress: Callable[[str], None]) -> None:
        mask = parse(url).mask
        try:
            return build(self, url, lambda text: progress(mask(text)))
        except Exception as error:
            shown = redacted(error, mask)
        raise shown  # not while the original is being handled, which would become its context

    return cast(Build, wrapped)


def _libpq() -> list[tuple[str, str, str, str]]:
    """Return (parameter, variable, value, what libpq has compiled in) of what libpq takes from its
    variables and their service."""
    from psycopg.pq import Conninfo

    def text(value: bytes | None) -> str:
        return (value or b"").decode(errors="replace")

    return [
        (text(o.keyword), text(o.envvar), text(o.val), text(o.compiled))
        for o in Conninfo.get_defaults()
    ]


def inherited_password(dsn: Dsn) -> str:
    """Return which variable would give libpq the password for the server that `dsn` names; empty if
    none would, or it names none.

    A password file is asked by host, port, database and user, so what it says is meant for that
    server. A service that `dsn` itself names has the password of the host in it, unless `dsn` names
    another one (libpq-connect, libpq-pgservice, libpq-pgpass).
    """
    names_a_server = any(dsn.get(key) for key in ("host", "hostaddr", "port"))
    if dsn.get("password") or not (names_a_server or dsn.get("service")):
        return ""
    if os.environ.get("PGPASSWORD"):
        return "PGPASSWORD"
    if names_a_server and dsn.get("service"):
        return "the service in url"
    return (
        "PGSERVICE"
        if names_a_server and any(key == "password" and value for key, _, value, _ in _libpq())
        else ""
    )


def with_libpq_defaults(dsn: Dsn) -> Dsn:
    """Return a copy in which the place that libpq's variables and their
    service name is said outright."""
    found = {
        key: value
        for key, _, value, _ in _libpq()
        if key in ("host", "hostaddr", "port", "user", "password")
    }
    return dsn.with_defaults(found)


def libpq_options(dsn: Dsn) -> str:
    """Return the settings with which libpq begins a session at `dsn`: its own, or those of libpq's
    variables and their service."""
    # Only a service has to be looked up in files
    if dsn.get("options") or not os.environ.get("PGSERVICE"):
        return dsn.get("options") or os.environ.get("PGOPTIONS", "")
    return next((value for key, _, value, _ in _libpq() if key == "options"), "")


def child_environment(dsn: Dsn, current: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a program that is to reach the database at `dsn` and no other,
    whichever variables it reads.

    Arguments: `current`, the environment of this process. A service wins over every PG* variable,
    an address over a host name, so neither is passed on; what a service said of passwords and
    encryption is, as variables of its own.
    """
    found = _libpq()
    names = {variable for _, variable, _, _ in found if variable}
    given = dict(dsn.params)
    environ = {name: value for name, value in current.items() if name not in names}
    for key, variable, value, compiled in found:
        if (
            variable
            and key not in _PLACE
            and (said := given.get(key) or (value if value != compiled else ""))
        ):
            environ[variable] = said
    environ.update(pg_environment(dsn))
    for key, variable in (("hostaddr", "PGHOSTADDR"), ("options", "PGOPTIONS")):
        if given.get(key):
            environ[variable] = given[key]
    defaults = {key: value for key, _, value, _ in found}
    if defaults["hostaddr"] and not given.get("hostaddr") and given.get("host") == defaults["host"]:
        # Of this very host, so it is how we ourselves reach it
        environ["PGHOSTADDR"] = defaults["hostaddr"]
    return environ


def pg_environment(dsn: Dsn) -> dict[str, str]:
    """Return the PG* variables that point libpq programs at `dsn` ("Environment Variables",
    PostgreSQL documentation)."""
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    return {variable: dsn.get(key) for key, variable in names.items() if dsn.get(key)}


def bound_environment(names: Iterable[str], dsn: Dsn, current: Mapping[str, str]) -> dict[str, str]:
    """Return the values that bind the environment variables `names` to a database.

    A name such as PGHOST gets that part of it, or stays as it is if the part is libpq's own to
    find; any other name gets the URL. A driver in the present value (`postgresql+psycopg://`) is
    kept, because the application counts on it. Raises SettingsError for a name that cannot be one.
    """
    parts = pg_environment(dsn)
    bound = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SettingsError(
                f"env names {mask_any(name)!r}, which no environment variable is called",
                "",
                "Write a name such as DATABASE_URL.",
            )
        if re.fullmatch(r"PG(HOST|PORT|USER|PASSWORD|DATABASE)", name):
            bound.update({name: parts[name]} if name in parts else {})
        else:
            driver = re.match(r"postgres(?:ql)?(\+\w+)://", current.get(name, ""))
            bound[name] = (
                dsn.url.replace("postgresql://", f"postgresql{driver[1]}://", 1)
                if driver
                else dsn.url
            )
    return bound
