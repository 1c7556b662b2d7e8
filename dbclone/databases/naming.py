"""Names and marks: what a database made by dbclone is called, what it says of itself, and which
ones have had their time.

Pure values: nothing here talks to a server. Identity is in the name, proof in the mark, life in the
lease. A database may be destroyed only if its name has our shape, it belongs to our own role, and
it carries our mark for this very database: this server's identifier, the database's oid, and the
name that we gave it last. A comment that was copied fails by the oid, and a database that its user
has renamed is his. A client killed while it creates a database leaves one without a comment; for
that moment the proof is a connection limit of no effect, given in the CREATE DATABASE statement
itself, that stands for this name on this server only.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import TemplateError, encodable
from ..process.clock import wall
from ..schema.manifest import digest
from ..server.locks import lock_key

FORMAT = 2  # of marks; one of another format is another dbclone's, whose databases are left alone
KINDS = ("template", "build", "clone", "spare", "scratch", "kept")
# A CONNECTION LIMIT from here on is above any max_connections (2^18 - 1), so it limits nothing
NO_LIMIT = 2**30
_TEXTS = (
    "kind", "project", "system", "fingerprint", "run", "worker", "template", "label", "host",
    "name",
)  # fmt: skip
_SHAPE = re.compile(r"dbclone_[a-z0-9_]{1,55}\Z")
_NEVER = ("postgres", "template0", "template1")
_NAMES = 4  # that a template may have; the first serves unless another version of dbclone has it


@dataclass(frozen=True)
class Mark:
    """What dbclone writes into COMMENT ON DATABASE: that it made the database, of which kind, for
    whom, from what.

    `system` is the server's system identifier; `manifest` and `seconds` (how long the build took)
    are a template's; `run` and `worker` a clone's; `template`, the oid of what a warm clone is a
    copy of, because a rebuilt template has the same fingerprint; `label`, what a clone that was
    kept is kept for, such as a test that failed; `oid` and `name` are the database's own, with the
    name that we gave it last (see `bound`): oids are given once, and only we know the name that we
    gave. `created` and `used` are seconds since 1970; `host` and `pid` inform people and prove
    nothing.
    """

    kind: str
    project: str
    system: str
    fingerprint: str = ""
    run: str = ""
    worker: str = ""
    template: str = ""
    label: str = ""
    created: float = 0.0
    used: float = 0.0
    host: str = ""
    pid: int = 0
    seconds: float = 0.0
    manifest: dict[str, str] = field(default_factory=dict)
    oid: int = 0
    name: str = ""

    @classmethod
    def make(cls, kind: str, project: str, system: str, **values: Any) -> Mark:
        """Return a mark for a database that this process is about to make."""
        now = round(wall(), 3)
        # Or `read` would not believe it
        values = {k: encodable(v) if isinstance(v, str) else v for k, v in values.items()}
        return cls(
            kind,
            project,
            system,
            created=now,
            used=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            **values,
        )

    def bound(self, name: str, oid: int) -> Mark:
        """Return this mark as that of the database with this name and oid:
        only so does it prove anything."""
        return replace(self, name=name, oid=oid)

    def text(self) -> str:
        """Return the mark as the JSON that is stored."""
        always = ("kind", "project", "system")
        return json.dumps(
            {"dbclone": FORMAT, **{k: v for k, v in asdict(self).items() if v or k in always}},
            sort_keys=True,
        )

    @classmethod
    def read(cls, comment: str | None) -> Mark | None:
        """Return the mark in a comment, or None if there is none that can be trusted: then the
        database is not ours."""
        data = _parsed(comment)
        if _format(data) != FORMAT or data.get("kind") not in KINDS:
            return None
        del data["dbclone"]
        for name in _TEXTS:
            if not isinstance(data.get(name, ""), str):
                return None
        number = (int, float)
        for name, kinds in (
            ("created", number),
            ("used", number),
            ("seconds", number),
            ("pid", (int,)),
            ("oid", (int,)),
        ):
            value = data.get(name, 0)
            if type(value) not in kinds or not 0 <= value < 1e15:  # NaN is neither
                return None
        manifest = data.get("manifest", {})
        if not isinstance(manifest, dict) or not all(isinstance(v, str) for v in manifest.values()):
            return None
        try:
            return cls(**data)
        except TypeError:
            return None


def _parsed(comment: str | None) -> dict[str, Any]:
    """Return the JSON object in a comment, or an empty one."""
    if not comment or len(comment) > 4_000_000:
        return {}
    try:
        data = json.loads(comment)
        json.dumps(
            data, ensure_ascii=False
        ).encode()  # half a character, such as \ud800, is in no name that we could compute
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _format(data: dict[str, Any]) -> int:
    """Return the format of the mark that a comment holds, 0 if it is none."""
    number = data.get("dbclone")
    return number if type(number) is int and number > 0 else 0  # nor true, which equals 1


@dataclass(frozen=True)
class Database:
    """A database with a name of our shape, as the catalogue shows it. `sessions` counts who is
    connected to it."""

    oid: int
    name: str
    own: bool
    sealed: bool
    limit: int
    bytes: int
    sessions: int
    mark: Mark | None
    comment: str | None

    @property
    def published(self) -> bool:
        """Whether this is a template under the name that its fingerprint gives it: neither one that
        its builder had no time to publish nor one that another has replaced."""
        mark = self.mark
        names = (
            template_names(mark.project, mark.fingerprint)
            if mark is not None and mark.kind == "template"
            else ()
        )
        return self.name in names

    @property
    def other_format(self) -> int:
        """The format of its mark if that is another dbclone's than ours, an older or a newer one's;
        else 0."""
        number = _format(_parsed(self.comment)) if self.mark is None else FORMAT
        return number if number != FORMAT else 0

    def problem(self, system: str, made: int = 0) -> str:
        """Return why dbclone may not destroy this database, or an empty string if it made it.

        Arguments: `system`, the identifier of the server that it is on; `made`, the oid of a
        database that this process made there.
        """
        if not _SHAPE.match(self.name) or self.name in _NEVER:
            return "its name is not one that dbclone gives"
        if not self.own:
            return "it belongs to another role"
        if self.oid == made:
            return ""
        if self.mark is not None:
            return self._other(self.mark, system)
        if self.other_format:
            return (
                "its mark is that of another version of dbclone"
                f" (format {self.other_format}, ours is {FORMAT})"
            )
        if self.comment:
            return "its comment is not dbclone's"
        return "" if self.limit == limit_for(self.name, system) else "it has no mark of dbclone"

    def _other(self, mark: Mark, system: str) -> str:
        """Return how we know that a mark on this database is not its own, or an empty string."""
        if mark.system != system:
            return "its mark is of another server"
        if mark.oid != self.oid:
            return "its mark is of another database"
        return (
            ""
            if mark.name == self.name
            else "its mark is for another name: whoever renamed it has taken it"
        )


def _slug(text: str, length: int) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:length].strip("_") or "x"


def _digest(text: str) -> str:
    # Of any text, also of what os.fsdecode could not decode
    return digest(text.encode(errors="surrogatepass"))


def limit_for(name: str, system: str) -> int:
    """Return the CONNECTION LIMIT with which we create the database `name` on the server with this
    identifier: it limits nothing, and is right for no other name and no other server, so that
    nobody has it by copying a statement or restoring a dump."""
    return NO_LIMIT + int(_digest(f"limit{chr(0)}{system}{chr(0)}{name}")[:12], 16) % NO_LIMIT


def template_name(project: str, fingerprint: str, beside: int = 0) -> str:
    """Return the name of the template with this fingerprint, as dbclones with our format of marks
    compute it.

    Arguments: `beside`, how many names are passed over, because templates of other dbclones have
    them.
    """
    unique = f"{project}{chr(0)}{fingerprint}{chr(0)}{FORMAT}" + (
        f"{chr(0)}{beside}" if beside else ""
    )
    return f"dbclone_{_slug(project, 20)}_t_{_digest(unique)[:12]}"


def template_names(project: str, fingerprint: str) -> tuple[str, ...]:
    """Return all names that the template with this fingerprint may have, the usual one first."""
    return tuple(template_name(project, fingerprint, beside) for beside in range(_NAMES))


def free_template_name(project: str, fingerprint: str, known: Iterable[Database]) -> str:
    """Return the name for the template with this fingerprint: the first that no other version of
    dbclone has given.

    Arguments: `known`, the databases that there are. Where all are taken, it is the last.
    """
    taken = {database.name for database in known if database.other_format}
    names = template_names(project, fingerprint)
    return next((name for name in names if name not in taken), names[-1])


def build_name(project: str) -> str:
    """Return a fresh private name to build under."""
    return f"dbclone_{_slug(project, 20)}_b_{secrets.token_hex(6)}"


def spare_name(project: str) -> str:
    """Return a fresh name for a warm clone that nobody owns yet."""
    return f"dbclone_{_slug(project, 20)}_s_{secrets.token_hex(6)}"


def clone_name(project: str, run: str, owner: str) -> str:
    """Return the name of the clone of one owner (a worker) in one run: the same whoever computes
    it, and nobody else's."""
    # One that starts with x is never shown as it is, or it could be what is shown of another.
    shown = owner if re.fullmatch(r"[a-wyz0-9][a-z0-9]{0,11}", owner) else "x" + _digest(owner)[:10]
    return f"dbclone_{_slug(project, 20)}_{_digest(f'{project}{chr(0)}{run}')[:8]}_{shown}"


def kept_name(project: str, label: str, again: bool = False) -> str:
    """Return the name under which a clone is kept for `label`:
    the same each time, or one more with `again`."""
    shown = _slug(label.rpartition("::")[2] or label, 20)
    unique = f"{project}{chr(0)}{label}{secrets.token_hex(8) if again else ''}"
    return f"dbclone_{_slug(project, 20)}_k_{shown}_{_digest(unique)[:8]}"


def check_name(name: str) -> None:
    """Raise TemplateError unless `name` is one that dbclone gives: ASCII, at most 63 bytes, so that
    the server never cuts it."""
    if not _SHAPE.match(name):
        raise TemplateError(
            f"{name!r} is not a name that dbclone gives to databases",
            "",
            "This is a bug in dbclone: please report it.",
        )


def find_orphaned(
    databases: Iterable[Database], leased: set[int], system: str
) -> Iterator[tuple[Database, str]]:
    """Decide, without asking the server, which databases have no living owner: yield each with the
    reason.

    Arguments: `databases`, listed *before* `leased` was asked, so that a database whose lease is
    not there has lost it.
    """
    databases = list(databases)
    templates = {str(d.oid) for d in databases if d.published}
    for database in databases:
        if database.problem(system) or database.sessions:
            continue
        kind = database.mark.kind if database.mark is not None else "unfinished"
        if kind in ("build", "clone", "unfinished") and lock_key(database.name) not in leased:
            yield database, f"{kind} whose owner is gone"
        elif (
            kind == "template" and not database.published and lock_key(database.name) not in leased
        ):
            yield database, "template that was not published, or was replaced"
        elif kind == "spare" and database.mark is not None:
            if database.mark.template not in templates and lock_key(database.name) not in leased:
                yield database, "warm clone of a template that is gone"
        elif (
            kind == "scratch"
            and database.mark is not None
            and wall() - database.mark.created > 86400
        ):
            yield database, "scratch clone older than a day"


def find_expired(
    databases: Iterable[Database],
    leased: set[int],
    system: str,
    project: str,
    current: str,
    count: int,
    days: float,
) -> Iterator[tuple[Database, str]]:
    """Decide what has had its time: templates of `project` beyond the newest `count` (`current`
    included), and those of any project that nobody used for `days`; clones that were kept for as
    long. One that a living run, or anybody, uses stays."""
    for database in databases:
        if (
            database.mark is None
            or database.mark.kind != "kept"
            or database.problem(system)
            or database.sessions
        ):
            continue
        if (age := (wall() - database.mark.created) / 86400) > days:
            yield database, f"kept for {age:.0f} days"
    templates = [
        (d.mark, d) for d in databases if d.mark is not None and d.published and d.name != current
    ]
    rank = 1 if current else 0
    for mark, database in sorted(templates, key=lambda pair: pair[0].used, reverse=True):
        idle = (wall() - mark.used) / 86400
        rank += mark.project == project
        if lock_key(database.name) in leased or database.problem(system):
            continue
        if mark.project == project and rank > count:
            yield database, f"template number {rank} of this project, {count} are kept"
        elif idle > days:
            yield database, f"template unused for {idle:.0f} days"
