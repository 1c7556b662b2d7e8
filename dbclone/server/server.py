"""One PostgreSQL server: how we reach it, what it is and allows, its advisory locks and leases.

Every dbclone process has one administrative connection to a server, in the maintenance database,
because advisory locks belong to one database and all of ours have to meet (PostgreSQL
documentation, explicit-locking, "Advisory Locks"). A lease is such a lock, held for as long as its
owner lives: the server itself knows who is alive, whatever was killed how.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import psycopg

from ..errors import PermissionMissing, ServerError
from ..process.forks import OwnerProcess, Sessions
from ..settings import Settings
from . import pgbouncer, session_options
from .connect import (
    MAINTENANCE,
    NO_TRIGGERS,
    Connection,
    connect_maintenance,
    open_session,
    quoted,
    readable,
    translate_error,
)
from .dsn import Dsn, inherited_password, parse
from .locks import Leases
from .private.embedded import Embedded


class Facts(NamedTuple):
    """What a server is: asked once a connection."""

    version: int  # as server_version_num, 180001
    system: str  # system identifier: another cluster behind the same URL has another
    role: str
    superuser: bool
    createdb: bool
    durable: bool  # whether fsync is on
    in_recovery: bool
    max_connections: int
    encoding: str  # of template0
    collate: str
    ctype: str
    process: (
        int  # of the session that answers: who connects through a pooler was told another number
    )
    direct: bool  # whether that session has begun with our options

    @property
    def major(self) -> int:
        return self.version // 10000

    @classmethod
    def ask(cls, connection: Connection) -> Facts:
        """Return what the server is that a connection leads to; let its session last whatever that
        says of long transactions."""
        row = connection.execute(_FACTS.encode()).fetchone()
        assert row is not None
        return cls(*row[:-1])


_FACTS = f"""
SELECT current_setting('server_version_num')::int,
       (SELECT system_identifier::text FROM pg_control_system()),
       rolname::text, rolsuper, rolcreatedb, current_setting('fsync')::bool, pg_is_in_recovery(),
       current_setting('max_connections')::int, pg_encoding_to_char(d.encoding)::text,
       d.datcollate::text, d.datctype::text, pg_backend_pid(),
       current_setting('dbclone.direct', true) IS NOT DISTINCT FROM 'on',
       {session_options.UNTIL_THE_END}
FROM pg_roles, pg_database d WHERE rolname = current_user AND d.datname = 'template0'
"""  # noqa: S608 - two constants


@dataclass
class Server:
    """A server that we are connected to. Use `open` and `close`, or a `with` statement.

    Attributes: `dsn`, where it is, with what the server itself filled in; `embedded`, our private
    server or None; `connection`, the administrative connection in the maintenance database
    `maintenance`, always in autocommit; `gone`, whether it was lost and waiting for another was in
    vain.
    """

    settings: Settings
    dsn: Dsn
    connection: Connection
    embedded: Embedded | None = None
    maintenance: str = MAINTENANCE
    gone: bool = False
    home: OwnerProcess = field(default_factory=OwnerProcess, repr=False)
    sessions: Sessions = field(default_factory=Sessions, repr=False)

    def __post_init__(self) -> None:
        self.sessions.add(self.connection)

    @classmethod
    def open(cls, settings: Settings, dsn: Dsn | None = None) -> Server:
        """Connect to the server that `settings` mean; start a private one if they name none.

        Arguments: `dsn`, where the server is, if another process found that out already. Raises
        ServerNotFound, ServerError, PermissionMissing or OutOfConnections.
        """
        if dsn is None:
            dsn = external(settings)
        embedded = None
        if dsn is None:
            embedded = Embedded.open(settings, lambda where: open_session(where, settings, "admin"))
            dsn, connection = embedded.dsn, embedded.connection
            assert connection is not None
        else:
            connection = connect_maintenance(dsn, settings)
        readable(connection)
        info = connection.info
        where = {"host": info.host, "port": str(info.port), "user": info.user}
        server = cls(settings, dsn.with_defaults(where), connection, embedded, info.dbname)
        try:
            server._check()
        except BaseException:
            server.close()
            raise
        return server

    @cached_property
    def leases(self) -> Leases:
        """The advisory locks of this connection."""
        return Leases(self.connection)

    @cached_property
    def facts(self) -> Facts:
        """What this server is, asked at the first use."""
        return Facts.ask(self.connection)

    def _check(self) -> None:
        try:
            facts = self.facts
        except (
            psycopg.OperationalError
        ) as error:  # a pooler lets us in first, and then asks the server
            raise translate_error(error, self.dsn) from None
        if lent := pgbouncer.sign_of_pooler(
            self.connection.info.backend_pid, facts.process, facts.direct
        ):
            raise pgbouncer.refusal(self.where, lent)
        if facts.major < 14:
            raise ServerError(
                f"PostgreSQL {facts.major} on {self.where} is too old",
                "dbclone needs 14 or later.",
                "Use a newer server.",
            )
        if facts.in_recovery:
            raise ServerError(
                f"the server at {self.where} is in recovery",
                "It is a standby: nothing can be created on it.",
                "Use its primary.",
            )
        if not (facts.superuser or facts.createdb):
            raise PermissionMissing(
                f"role {facts.role!r} may not create databases on {self.where}",
                "dbclone keeps templates and clones as databases of their own.",
                f"Run as a superuser: ALTER ROLE {quoted(facts.role)} CREATEDB;",
            )

    @property
    def where(self) -> str:
        """The server's host and port, for people."""
        return (
            "the private server"
            if self.embedded
            else f"{self.dsn.get('host', 'localhost')}:{self.dsn.get('port', '5432')}"
        )

    @property
    def version(self) -> str:
        """The server's version for people, such as 18.1."""
        return f"{self.facts.major}.{self.facts.version % 10000}"

    def database(self, name: str) -> Dsn:
        """Return the Dsn of a database on this server."""
        return self.dsn.replace(dbname=name)

    def connect_again(self) -> Connection:
        """Return a new administrative connection, because the last one was lost.
        Raises ServerError."""
        if self.embedded is not None:
            return self.embedded.rejoin(lambda dsn: open_session(dsn, self.settings, "admin"))
        return open_session(self.database(self.maintenance), self.settings, "admin")

    def connect(self, database: str, purpose: str, options: str = "") -> Connection:
        """Return a new autocommit connection to a database, named after `purpose` in the server's
        list of sessions.

        Arguments: `options`, libpq's, such as -c settings, on top of ours.
        """
        self.home.require()
        more = f"{session_options.options(self.facts.major)} {options}"
        quiet = f"{more} {NO_TRIGGERS}" if self.facts.superuser and self.facts.major >= 17 else more
        connection = open_session(self.database(database), self.settings, purpose, quiet)
        self.sessions.add(connection)
        return connection

    def fetch(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run a query on the administrative connection and return its rows."""
        return self.connection.execute(query.encode(), parameters).fetchall()

    def close(self) -> None:
        """End the administrative connection, and with it all leases; stop the private server if
        nobody else uses it. A forked process does nothing: all that is its parent's."""
        if self.home.forked:
            return
        if self.embedded is not None:
            self.embedded.leave(keep=self.settings.keep_server)
        self.connection.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def external(settings: Settings) -> Dsn | None:
    """Return the server that `url` or libpq's own variables name, or None if a private one is
    wanted.

    Raises SettingsError, also if a password of the environment would go to a server that only a
    file of the repository names.
    """
    if settings.url:
        found = parse(settings.url, f"url (from {settings.source('url')})")
        if settings.of_repository("url") and (secret := inherited_password(found)):
            raise settings.error(
                "url",
                f"the password in {secret} is not sent to a server that only"
                f" {settings.source('url').rpartition(' ')[0]} names",
                f"Say yourself that this is the server: set DBCLONE_URL to {found.shown}. Or"
                f" keep its password in the file that"
                f" PGPASSFILE names, where each stands beside its host, and unset {secret}.",
            )
        return found
    if any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE")):
        return Dsn(())
    return None
