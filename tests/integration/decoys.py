"""Decoys: databases that could be mistaken for dbclone's own, each in one way, and the proof that
nothing was done to one."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
from psycopg import sql

from dbclone.clone.clone import Clone
from dbclone.databases.naming import FORMAT, Mark, limit_for
from dbclone.server.server import Server
from dbclone.template.template import Template

from ..faults.stops import ended, until

FOREIGN = "decoy_owner"


@dataclass(frozen=True)
class Way:
    """A way of being mistaken: what is in the comment, given the right mark; who owns it; whether
    it has our connection limit, and whether that was `copied` from another database of ours."""

    comment: Callable[[Mark], str]
    foreign: bool = False
    limited: bool = False
    copied: bool = False


def _more(mark: Mark, **values: object) -> str:
    return json.dumps({**json.loads(mark.text()), **values})


WAYS = {
    "no mark": Way(lambda mark: ""),
    "no mark, a limit like ours": Way(lambda mark: "", limited=True, copied=True),
    "somebody's comment and our limit": Way(lambda mark: "the accounting database", limited=True),
    "another cluster": Way(
        lambda mark: replace(mark, system="7123456789012345678").text(), limited=True
    ),
    "another role, our mark": Way(lambda mark: mark.text(), foreign=True, limited=True),
    "another role, no mark, our limit": Way(lambda mark: "", foreign=True, limited=True),
    "half a mark": Way(lambda mark: mark.text()[:-1], limited=True),
    "a mark of the future": Way(lambda mark: _more(mark, dbclone=FORMAT + 1), limited=True),
    "a mark of the past": Way(lambda mark: _more(mark, dbclone=1), limited=True),
    "the mark of another database": Way(
        lambda mark: replace(mark, oid=mark.oid - 1).text(), limited=True
    ),
    "a mark of no database": Way(lambda mark: replace(mark, oid=0).text(), limited=True),
    "a mark for another name": Way(
        lambda mark: replace(mark, name=f"{mark.name}_").text(), limited=True
    ),
    "a mark for no name": Way(lambda mark: replace(mark, name="").text(), limited=True),
    "a mark of an unknown kind": Way(lambda mark: _more(mark, kind="backup"), limited=True),
}
OTHER_VERSIONS = ("a mark of the future", "a mark of the past")
# One line of the log: [database] and what was run there, which may go on over several lines.
_LINE = re.compile(
    r"^\[([^\]]*)\] LOG:  (?:statement|execute [^:]*): (.*?)(?=^\[|\Z)", re.DOTALL | re.MULTILINE
)
_HARMLESS = re.compile(r"\s*(SELECT|SHOW|BEGIN|COMMIT|ROLLBACK|SET LOCAL)\b", re.IGNORECASE)
_ENDING = re.compile(r"pg_terminate_backend|pg_cancel_backend|lo_unlink|setval", re.IGNORECASE)
_STATE = "SELECT oid, datname, datdba, datistemplate, datallowconn, datconnlimit, datacl::text, shobj_description(oid, 'pg_database')"


@contextlib.contextmanager
def logging(server: Server) -> Iterator[Path]:
    """Let the server log, with its database, every statement of sessions that begin in the block;
    give the file."""
    assert server.embedded is not None
    settings = {"log_statement": "all", "log_line_prefix": "[%d] "}
    try:
        server.connection.execute(
            "ALTER ROLE ALL SET log_min_messages = log"
        )  # it is on the server's command line
        for name, value in settings.items():
            server.connection.execute(
                sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            )
        server.fetch("SELECT pg_reload_conf()")
        until(lambda: server.fetch("SHOW log_line_prefix") == [("[%d] ",)])
        yield server.embedded.cluster.log
    finally:
        server.connection.execute("ALTER ROLE ALL RESET log_min_messages")
        for name in settings:
            server.connection.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))
        server.fetch("SELECT pg_reload_conf()")
        until(lambda: server.fetch("SHOW log_statement") == [("none",)])


@dataclass
class Stage:
    """Where one decoy stands. `server` acts, as a superuser, whom nothing but dbclone itself holds
    back."""

    server: Server
    template: Template
    way: Way
    log: Path
    name: str = ""
    _session: psycopg.Connection[tuple[object, ...]] | None = None
    _before: list[tuple[object, ...]] = field(default_factory=list)
    _from: int = 0
    _aside: list[str] = field(default_factory=list)

    def put(self, name: str, kind: str = "clone", watched: bool = True) -> None:
        """Create the decoy under a name, with rows, and if it is `watched` with a session in it."""
        run, identifier = self.server.connection.execute, sql.Identifier(name)
        owner = (
            sql.SQL("OWNER {}").format(sql.Identifier(FOREIGN)) if self.way.foreign else sql.SQL("")
        )
        right = limit_for(f"{name}_" if self.way.copied else name, self.server.facts.system)
        limit = sql.SQL("CONNECTION LIMIT {}").format(right) if self.way.limited else sql.SQL("")
        run(sql.SQL("CREATE DATABASE {} TEMPLATE template0 {} {}").format(identifier, owner, limit))
        assert self.template.database.mark is not None
        mark = replace(
            Mark.make(kind, self.server.settings.project, self.server.facts.system),
            fingerprint=self.template.database.mark.fingerprint,
            template=str(self.template.database.oid) if kind == "spare" else "",
        )
        ((oid,),) = self.server.fetch(
            "SELECT oid::int8 FROM pg_database WHERE datname = %s", [name]
        )
        if comment := self.way.comment(mark.bound(name, oid)):
            run(sql.SQL("COMMENT ON DATABASE {} IS {}").format(identifier, sql.Literal(comment)))
        self.name = name
        self._session = psycopg.connect(self.server.database(name).url, autocommit=True)
        self._session.execute(
            "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1), (2), (3)"
        )
        if not watched:
            pid = self._session.info.backend_pid
            self._session.close()
            ended(self.server, pid)
            self._session = None
        self._before = self._state()
        self._from = self.log.stat().st_size

    def put_for(self, clone: Clone) -> None:
        """Let the decoy take the name of a clone, which lives on elsewhere."""
        self._aside.append(f"aside_{uuid.uuid4().hex[:8]}")
        self.server.connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                sql.Identifier(clone.name), sql.Identifier(self._aside[-1])
            )
        )
        self.put(clone.name)

    def _state(self) -> list[tuple[object, ...]]:
        return self.server.fetch(f"{_STATE} FROM pg_database WHERE datname = %s", [self.name])

    def untouched(self) -> None:
        """Assert that the decoy is what it was, with its rows and its session, and that nothing was
        even tried."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            said = file.read().decode()
        assert self._before
        assert self._state() == self._before
        if self._session is None:
            self._session = psycopg.connect(self.server.database(self.name).url, autocommit=True)
        assert self._session.execute("SELECT array_agg(id ORDER BY id) FROM item").fetchone() == (
            [1, 2, 3],
        )
        ran = _LINE.findall(said)
        assert ran, "the log shows what was run"
        for database, statement in ran:
            if database == self.name or f'"{self.name}"' in statement:
                assert _HARMLESS.match(statement), f"in {database}: {statement}"
            assert not (database == self.name and _ENDING.search(statement)), statement

    def clear(self) -> None:
        """Remove the decoy and what it has driven aside."""
        if self._session is not None:
            self._session.close()
        for name in filter(None, [self.name, *self._aside]):
            self.server.connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )
