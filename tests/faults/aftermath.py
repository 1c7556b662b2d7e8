"""What holds after every fault, whoever died: clones equal a reference, nothing of the dead stays,
nothing foreign has changed."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

from dbclone.adapters import handles
from dbclone.databases import ddl
from dbclone.databases.naming import Mark, clone_name, spare_name
from dbclone.databases.prune import prune
from dbclone.server.locks import lock_key
from dbclone.server.server import Server
from dbclone.template.template import Template

from ..conftest import Project
from ..oracle import differences, fingerprint
from .stops import until

SCHEMA = """
CREATE TABLE item (id serial PRIMARY KEY, name text UNIQUE, up int REFERENCES item);
INSERT INTO item (name) SELECT 'item ' || n FROM generate_series(1, 100) n;
CREATE TABLE log (what text);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN NEW; END $$;
CREATE TRIGGER noted AFTER INSERT ON item FOR EACH STATEMENT EXECUTE FUNCTION noted();
CREATE MATERIALIZED VIEW names AS SELECT name FROM item;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''7MB''', current_database()); END $$;
"""


def write(project: Project) -> None:
    """Give a project the schema above, as its SQL file."""
    project.configure(schema="schema.sql", bind=None)
    (project.folder / "schema.sql").write_text(SCHEMA)


def ensure(server: Server, rebuild: bool = False) -> Template:
    return Template.ensure(server, handles.load(server.settings)[0], rebuild=rebuild)


@contextlib.contextmanager
def made(server: Server, name: str) -> Iterator[str]:
    """Make a database that is not ours for the block; give its URL."""
    server.connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    )
    try:
        yield server.database(name).url
    finally:
        server.connection.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )


def reference(server: Server) -> dict[str, str]:
    """Return the fingerprint of what the schema makes, with nothing of dbclone in between."""
    with made(server, f"reference_{uuid.uuid4().hex[:8]}") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
        return fingerprint(url)


@dataclass
class Foreign:
    """What others have on the same server: a database, one whose name looks like ours, the clone of
    a run that lives, and sessions in all three."""

    server: Server
    sessions: list[psycopg.Connection[tuple[object, ...]]]
    before: list[tuple[object, ...]]

    def state(self) -> list[tuple[object, ...]]:
        """Ask each session where it is, over the connection that it always had."""
        query = """SELECT d.oid::int8, datname::text, pg_backend_pid(), shobj_description(d.oid, 'pg_database'),
                          (SELECT string_agg(what, ',' ORDER BY what) FROM public.sentinel)
                   FROM pg_database d WHERE datname = current_database()"""
        return [
            row for session in self.sessions for row in session.execute(query.encode()).fetchall()
        ]

    def untouched(self) -> None:
        """Nothing of it has changed, been dropped or been disconnected."""
        assert self.state() == self.before


@contextlib.contextmanager
def foreign(server: Server) -> Iterator[Foreign]:
    """Make all that is not ours, for the block."""
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(Server.open(server.settings))
        live = clone_name("elsewhere", uuid.uuid4().hex, "gw0")
        assert owner.leases.acquire(live)
        ddl.create(
            owner,
            live,
            "template0",
            Mark.make("clone", "elsewhere", owner.facts.system, worker="gw0"),
        )
        stack.callback(
            lambda: ddl.drop(owner, database) if (database := ddl.find(owner, live)) else None
        )
        urls = [
            stack.enter_context(made(server, name))
            for name in (f"prod_{uuid.uuid4().hex[:8]}", spare_name("elsewhere"))
        ]
        sessions = []
        for url in (*urls, server.database(live).url):
            session = stack.enter_context(contextlib.closing(psycopg.connect(url, autocommit=True)))
            session.execute("CREATE TABLE public.sentinel AS SELECT 'precious' AS what")
            sessions.append(session)
        found = Foreign(server, sessions, [])
        found.before = found.state()
        yield found


def all_well(
    project: Project,
    server: Server,
    truth: dict[str, str],
    others: Foreign | None = None,
    owners: Iterable[tuple[str, str]] = (("gw0", "r"), ("gw1", "r"), ("gw2", "r")),
) -> Template:
    """After a fault and the end of who died of it: the template is found or built without help,
    clones of it equal the reference, and after a prune it is all that is left. Returns the
    template.

    Arguments: `owners`, who want clones: (worker, run), also the dead ones themselves, come back.
    """
    template = ensure(server)
    with contextlib.ExitStack() as stack:
        for owner, run in owners:
            clone = stack.enter_context(template.clone(owner, run))
            assert differences(truth, fingerprint(clone.url)) == ""
    prune(server, template.name)
    assert project.databases(server) == [template.name]
    if others is not None:
        others.untouched()
    return template


def nobody_holds(project: Project, server: Server) -> None:
    """Wait until the server has noticed the end of all who had databases of a project, or were
    making one, but for `server`.

    Who holds a template only, shares it.
    """

    def free() -> bool:
        names = project.databases(server)
        busy = server.fetch(
            "SELECT FROM pg_stat_activity WHERE datname = ANY(%s) OR (query ~ %s AND state"
            " <> 'idle' AND pid <> pg_backend_pid())",
            [names, f"DATABASE.*dbclone_{project.name}_"],
        )
        mine = {lock_key(name) for name in server.leases._taken}
        owned = {lock_key(name) for name in names if "_t_" not in name}
        return not busy and not (owned & server.leases.held() - mine)

    until(free)
