"""What a developer has on the same server and beside the same folders: planted before the tests,
compared when they have ended.

Nothing of it is dbclone's, some of it looks as if it were, and not one byte of it may differ
afterwards. Every server that tests share carries `Databases`, and the sample applications lead
there unless dbclone leads them elsewhere; every folder that dbclone is given has `files` beside it.
`python -m tests.developer` does the same around whole commands, for `.ci/run`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import conninfo, sql

from dbclone.databases.naming import NO_LIMIT

from .oracle import differences, fingerprint

#: Where a sample application's own database is, until dbclone leads it elsewhere: the folder of a socket.
HOST = "SHOP_HOST"
#: If it is in the environment, everything is compared after each test.
EACH = "TEST_EACH"
SHOP = "shop_dev"
LIMIT = NO_LIMIT + 4711  # as a database of ours could have, of another name
STRANGER = 12345  # the number of a user whom no machine has

# Run as the developer. The first tables are those of the sample projects: what a test writes here
# by mistake succeeds in silence.
_SCHEMA = """
CREATE TABLE "user" (id serial PRIMARY KEY, name varchar(255) NOT NULL UNIQUE);
CREATE TABLE post (id serial PRIMARY KEY, user_id int NOT NULL REFERENCES "user", text text NOT NULL);
INSERT INTO "user" (name) SELECT 'precious ' || n FROM generate_series(1, 50) AS n;
INSERT INTO post (user_id, text) SELECT id, 'of ' || name FROM "user";
CREATE TABLE users (id serial PRIMARY KEY, name varchar NOT NULL UNIQUE);
CREATE TABLE person (id serial PRIMARY KEY, name varchar NOT NULL UNIQUE);
INSERT INTO users (name) VALUES ('ada'), ('bea');
INSERT INTO person (name) VALUES ('ada'), ('bea');
CREATE SCHEMA audit;
CREATE TYPE audit.mood AS ENUM ('good', 'bad', 'Großartig');
CREATE TYPE audit.address AS (street text, number int);
CREATE DOMAIN audit.positive AS numeric(12, 2) CHECK (VALUE > 0);
CREATE TABLE audit.entry (
    id bigint GENERATED ALWAYS AS IDENTITY (START 1000 INCREMENT 7) PRIMARY KEY, at timestamptz NOT NULL, day date, mood audit.mood,
    amount audit.positive, home audit.address, tags text[], document jsonb, raw bytea, span int4range, source inet, ratio float8,
    key uuid UNIQUE, twice numeric GENERATED ALWAYS AS (amount * 2) STORED);
INSERT INTO audit.entry (at, day, mood, amount, home, tags, document, raw, span, source, ratio, key)
    SELECT '2020-02-29 12:00+00'::timestamptz + n * interval '1 hour', '2020-02-29'::date + n, 'Großartig', n + 0.5,
           ROW('Main ''St''', n)::audit.address, ARRAY['a', NULL, 'ü'], '{"b": [1, null]}', '\\x00ff',
           int4range(n, n + 3), '10.0.0.1', 1 / n::float8, md5(n::text)::uuid
    FROM generate_series(1, 20) AS n;
CREATE TABLE audit.event (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE audit.event_2020 PARTITION OF audit.event FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO audit.event VALUES ('2020-05-05', 'old');
CREATE UNLOGGED TABLE audit.scratch AS SELECT 'unlogged' AS what;
CREATE SEQUENCE audit.invoice START 500 INCREMENT 5 CYCLE MAXVALUE 9000;
SELECT nextval('audit.invoice'), nextval('audit.invoice');
CREATE INDEX lower_name ON "user" (lower(name)) WHERE id > 3;
CREATE STATISTICS audit.together ON day, mood FROM audit.entry;
CREATE VIEW audit.latest AS SELECT id, at FROM audit.entry ORDER BY at DESC LIMIT 3;
CREATE MATERIALIZED VIEW audit.per_day AS SELECT day, count(*) FROM audit.entry GROUP BY day;
CREATE FUNCTION audit.noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.what := NEW.what || '!'; RETURN NEW; END $$;
CREATE TRIGGER noted BEFORE INSERT ON audit.event_2020 FOR EACH ROW EXECUTE FUNCTION audit.noted();
CREATE RULE kept AS ON DELETE TO audit.scratch DO INSTEAD NOTHING;
ALTER TABLE audit.entry ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.entry FORCE ROW LEVEL SECURITY;
CREATE POLICY recent ON audit.entry FOR SELECT USING (at > '2020-03-01');
SELECT lo_from_bytea(4242, 'a photograph');
COMMENT ON LARGE OBJECT 4242 IS 'of the sea';
COMMENT ON TABLE "user" IS 'people';
COMMENT ON COLUMN audit.entry.raw IS 'as it came';
COMMENT ON FUNCTION audit.noted() IS 'loud';
CREATE PUBLICATION everything FOR TABLE "user", post WITH (publish = 'insert');
"""
# What depends on a name, and what only a superuser may do.
_GRANTS = """
GRANT SELECT ON "user" TO {reader};
GRANT USAGE ON SCHEMA audit TO {reader} WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA audit GRANT SELECT ON TABLES TO {reader};
RESET ROLE;
CREATE FUNCTION audit.watched() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'dropped'; END $$;
CREATE EVENT TRIGGER noticed ON sql_drop WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION audit.watched();
"""
_ROLES_OF_HIS = """
CREATE ROLE {developer} LOGIN CONNECTION LIMIT 9 VALID UNTIL '2099-01-01' PASSWORD 'x';
CREATE ROLE {reader} NOINHERIT;
GRANT {reader} TO {developer} WITH ADMIN OPTION;
COMMENT ON ROLE {developer} IS 'works here';
ALTER ROLE {developer} SET application_name = 'by hand';
"""
_SETTINGS_OF_HIS = """
ALTER DATABASE {shop_dev} SET work_mem = '5MB';
ALTER DATABASE {shop_dev} SET search_path = public, audit;
ALTER ROLE {developer} IN DATABASE {shop_dev} SET statement_timeout = '59s';
GRANT CONNECT, TEMPORARY ON DATABASE {shop_dev} TO {reader};
"""
# Where each row is and which transactions wrote and locked it; a table written anew has another
# file.
_PLACES = """
SELECT format('%I.%I', n.nspname, c.relname), pg_relation_filenode(c.oid)::text, pg_relation_size(c.oid)::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('public', 'audit') AND c.relkind IN ('r', 'm', 'i', 'S')
"""
_TABLES = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'audit')"
_VERSIONS = sql.SQL(
    "SELECT string_agg(concat_ws(' ', ctid, xmin, xmax), ', ' ORDER BY ctid) FROM ONLY {}"
)
_DATABASES = """
SELECT datname::text, concat_ws(' | ', d.oid, datdba::regrole, pg_encoding_to_char(encoding), datcollate, datctype, datistemplate,
       datallowconn, datconnlimit, (SELECT spcname FROM pg_tablespace AS t WHERE t.oid = dattablespace), datacl,
       shobj_description(d.oid, 'pg_database'))
FROM pg_database AS d WHERE datname = ANY(%s)
"""
_ROLES = """
SELECT rolname::text, concat_ws(' | ', oid, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication,
       rolbypassrls, rolconnlimit, rolvaliduntil, rolpassword, shobj_description(oid, 'pg_authid'),
       array(SELECT concat_ws(' ', roleid::regrole, member::regrole, grantor::regrole, admin_option)
             FROM pg_auth_members WHERE roleid = a.oid OR member = a.oid ORDER BY 1))
FROM pg_authid AS a WHERE rolname = ANY(%s)
"""
# Those of everybody and everything, too: nobody has any there.
_SETTINGS = """
SELECT 'settings of ' || coalesce(r.rolname, 'all roles') || ' in ' || coalesce(d.datname, 'all databases'), setconfig::text
FROM pg_db_role_setting LEFT JOIN pg_roles AS r ON r.oid = setrole LEFT JOIN pg_database AS d ON d.oid = setdatabase
WHERE (r.rolname IS NULL OR r.rolname = ANY(%(roles)s)) AND (d.datname IS NULL OR d.datname = ANY(%(databases)s))
"""
_FILES = """
SELECT name, pg_read_file(name, 0, 1000000, true)
    FROM unnest(ARRAY['postgresql.auto.conf', 'postgresql.conf', 'pg_hba.conf', 'pg_ident.conf']) AS name
UNION ALL SELECT 'tablespace ' || spcname, spcowner::regrole::text FROM pg_tablespace
"""


@dataclass
class Databases:
    """A developer's databases and roles on one server, and what they were when they were made.

    `url` leads to the server as a superuser; `prefix` goes before all names, for a second developer
    on one server; `names` are the databases, `sealed` those of them that nobody can enter.
    """

    url: str
    prefix: str = ""
    names: list[str] = field(default_factory=list)
    sealed: list[str] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)

    @property
    def roles(self) -> list[str]:
        return [f"{self.prefix}developer", f"{self.prefix}reader"]

    def at(self, name: str) -> str:
        """Return the URL of one of the databases."""
        return conninfo.make_conninfo(self.url, dbname=name)

    def plant(self, copied: str = "", others: tuple[str, ...] = ()) -> None:
        """Make the databases.

        Arguments: `copied`, a comment that dbclone wrote on a database of its own, which one of
        these has a copy of; `others`, names of more databases like the first.
        """
        parts = {name: sql.Identifier(self.prefix + name) for name in ("developer", "reader", SHOP)}
        ours = f"dbclone_{self.prefix}shopdev"
        made = {
            self.prefix + SHOP: (
                "OWNER {developer} TEMPLATE template0 CONNECTION LIMIT 7",
                "do not touch",
            ),
            f"{self.prefix}suite": (
                "OWNER {developer} TEMPLATE {shop_dev}",
                "",
            ),  # as a project of the tests is called
            ours: (f"TEMPLATE {{shop_dev}} CONNECTION LIMIT {LIMIT}", ""),
            f"{ours}_c_dead_gw0": (f"TEMPLATE {{shop_dev}} CONNECTION LIMIT {LIMIT}", copied),
            f"{ours}_t_0123456789ab": (
                "TEMPLATE {shop_dev} IS_TEMPLATE true ALLOW_CONNECTIONS false",
                "of our training courses",
            ),
            **{name: ("OWNER {developer} TEMPLATE {shop_dev}", "") for name in others},
        }
        self.names, self.sealed = list(made), [f"{ours}_t_0123456789ab"]
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL(_ROLES_OF_HIS).format(**parts))
            for name, (options, comment) in made.items():
                identifier = sql.Identifier(name)
                connection.execute(
                    sql.SQL("CREATE DATABASE {} ").format(identifier)
                    + sql.SQL(options).format(**parts)
                )
                if comment:
                    connection.execute(
                        sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                            identifier, sql.Literal(comment)
                        )
                    )
                if name == self.prefix + SHOP:
                    with psycopg.connect(self.at(name), autocommit=True) as inside:
                        inside.execute(
                            "SET client_min_messages = error"
                        )  # a publication warns of a server that cannot publish
                        inside.execute(sql.SQL("SET ROLE {developer}").format(**parts))
                        inside.execute(_SCHEMA.encode())
                        inside.execute(sql.SQL(_GRANTS).format(**parts))
            connection.execute(sql.SQL(_SETTINGS_OF_HIS).format(**parts))
            if not self.prefix:
                connection.execute("ALTER SYSTEM SET log_autovacuum_min_duration = '17min'")
        self.before = self.state()

    def state(self) -> dict[str, str]:
        """Return all that is the developer's, by name: rows, where they are, objects, settings,
        comments, the server's files."""
        found: dict[str, str] = {}
        values = {"databases": self.names, "roles": self.roles}
        with psycopg.connect(self.url, autocommit=True) as connection:
            for what, query, parameters in (
                ("database", _DATABASES, [self.names]),
                ("role", _ROLES, [self.roles]),
                ("", _SETTINGS, values),
                ("", _FILES, None),
            ):
                for name, value in connection.execute(query.encode(), parameters):
                    found[f"{what} {name}".strip()] = str(value)
        for name in self.names:
            if name in self.sealed or f"database {name}" not in found:
                continue
            found |= {f"{name}: {part}": text for part, text in fingerprint(self.at(name)).items()}
            with psycopg.connect(
                self.at(name),
                autocommit=True,
                options="-c row_security=off -c search_path=pg_catalog",
            ) as inside:
                places = inside.execute(_PLACES.encode()).fetchall()
                found |= {
                    f"{name}: place of {table}": f"file {file}, {size} bytes"
                    for table, file, size in places
                }
                for schema, table in inside.execute(_TABLES).fetchall():
                    versions = inside.execute(
                        _VERSIONS.format(sql.Identifier(schema, table))
                    ).fetchone()
                    found[f"{name}: versions of {schema}.{table}"] = str(versions)
        return found

    def changes(self) -> str:
        """Return what is no longer as it was made, a line each; an empty string if everything is."""
        now = self.state()
        gone = [name for name in self.names if f"database {name}" not in now]
        before = {
            key: text
            for key, text in self.before.items()
            if not key.startswith(tuple(f"{name}: " for name in gone))
        }
        return differences(before, now)

    def remove(self) -> None:
        """Remove all of it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for name in self.names:
                identifier = sql.Identifier(name)
                with contextlib.suppress(psycopg.errors.InvalidCatalogName):
                    connection.execute(
                        sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(identifier)
                    )
                    connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
            for role in map(sql.Identifier, self.roles):
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(role))


def application_url(driver: str = "psycopg") -> str:
    """Return the URL that a sample application of SQLAlchemy leads to by itself: the developer's
    database on the tests' server."""
    host = quote(os.environ.get(HOST, "nowhere.invalid"), safe="")
    return f"postgresql+{driver}://postgres@/{SHOP}?host={host}"


class Touched(AssertionError):
    """Something of the developer's is no longer as it was."""


#: What stands in this process.
standing: list[Databases] = []


def compare() -> None:
    """Raise Touched if anything of the databases that stand has changed."""
    for found in standing:
        if changed := found.changes():
            again = f"Run the tests with {EACH}=1 to be told by the test that does it."
            raise Touched(
                f"the developer's databases at {found.url} were touched:\n{changed}\n{again}"
            )


@contextlib.contextmanager
def databases(url: str, copied: str = "") -> Iterator[Databases]:
    """Let a developer's databases stand on a server for the block; raise Touched if anything of
    them has changed in it.

    They stay: the server will be thrown away. Arguments: `url`, the server's, as a superuser;
    `copied`, see `Databases.plant`.
    """
    found = Databases(url)
    found.plant(copied)
    standing.append(found)
    try:
        yield found
        compare()
    finally:
        standing.remove(found)


def plant_files(place: Path, name: str = "accounts") -> Path:
    """Put a user's files, as old as they are, into a folder below `place`; return the folder.

    It has all that a private server's folder has, but what says that dbclone made it. No
    postmaster.pid is where it would save the folder from being swept.
    """
    top = place / name
    old = top / "data" / "old"
    (top / "data" / "base" / "1").mkdir(parents=True)
    old.mkdir()
    for path, content in {
        top / "letter.txt": "Dear Ann,",
        top / "log": "10:00 nothing happened\n",
        top / "keep": "",
        top / "postmaster.pid": "1\n",
        top / "data" / "PG_VERSION": "15\n",
        top / "data" / "base" / "1" / "1259": "\0\1\2",
        old / "postmaster.pid": f"{os.getpid()}\n/elsewhere\n",
        old / "models.py": "SECRET = 1\n",
        top / "data.1a2b3c4d.old": "a file",
    }.items():
        path.write_text(content)
    (top / "data.5e6f7a8b.new").mkdir()
    (top / "to a file").symlink_to(top / "letter.txt")
    (top / "to a folder").symlink_to(old)
    (top / "to nothing").symlink_to(top / "gone")
    os.link(top / "letter.txt", top / "letter again.txt")
    (top / "letter.txt").chmod(0o6751)
    (top / "keep").chmod(0o400)
    (top / "log").chmod(0o666)
    old.chmod(0o1777)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.chown(top / "log", STRANGER, STRANGER)
        os.lchown(top / "to nothing", STRANGER, STRANGER)
        os.chown(old, STRANGER, 0)
    then = time.time() - 400 * 86400
    for folder, folders, files in os.walk(top, topdown=False):
        for entry in (*folders, *files):
            os.utime(Path(folder) / entry, (then, then), follow_symlinks=False)
    os.utime(top, (then, then))
    return top


def inventory(top: Path) -> dict[str, str]:
    """Return what a folder and everything in it is: kind, mode, owner, time, content or target, by
    path; and mode and owner of each folder above it."""
    found = {}
    for path in (
        top,
        *(
            Path(folder) / entry
            for folder, folders, files in os.walk(top)
            for entry in (*folders, *files)
        ),
    ):
        try:
            info = path.lstat()
        except FileNotFoundError:
            continue
        content = ""
        if stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(info.st_mode):
            content = f"{info.st_size} bytes {hashlib.sha256(path.read_bytes()).hexdigest()}"
        found[str(path)] = (
            f"{info.st_mode:o} {info.st_uid}:{info.st_gid} {info.st_nlink} {info.st_mtime_ns}"
            f" {content}"
        )
    for above in top.parents:
        if above.exists():
            info = above.stat()
            found[f"above: {above}"] = f"{info.st_mode:o} {info.st_uid}:{info.st_gid}"
    return found


@contextlib.contextmanager
def files(*places: Path, name: str = "accounts") -> Iterator[None]:
    """Let a user's files stand in each place for the block, then remove them; raise Touched if
    anything of them has changed."""
    planted = []
    try:
        for place in places:
            planted.append(plant_files(place, name))
        before = [inventory(top) for top in planted]
        yield
        changed = "\n".join(filter(None, map(differences, before, map(inventory, planted))))
    finally:
        for top in planted:
            shutil.rmtree(top, ignore_errors=True)
    if changed:
        raise Touched(f"a user's files were touched:\n{changed}")


def neighbours(user: int) -> list[tuple[Path, str]]:
    """Return the places where users have the folders of private servers, each with a name there
    that one of `user` could have."""
    name = f"dbclone-{user}-{STRANGER}-{uuid.uuid4().hex[:8]}"
    return [
        (place, name)
        for place in map(Path, ("/dev/shm", "/var/tmp", "/tmp"))
        if os.access(place, os.W_OK | os.X_OK)
    ]


@contextlib.contextmanager
def neighbourhood(*places: Path) -> Iterator[None]:
    """Let a user's files stand in each place, and under names like those of our own folders where
    all users have theirs."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(files(*places))
        for place, name in neighbours(os.getuid()):
            stack.enter_context(files(place, name=name))
        yield


def plant(arguments: argparse.Namespace) -> None:
    """Plant what the arguments ask for, and write down what it is."""
    planted = Databases(arguments.url)
    if arguments.url:
        planted.plant(others=tuple(arguments.database))
    user = os.getuid() if arguments.owner is None else arguments.owner
    tops = [plant_files(folder) for folder in arguments.folder] + [
        plant_files(*neighbour) for neighbour in neighbours(user)
    ]
    if arguments.owner is not None:
        for top in tops:
            for path in (top, *top.rglob("*")):
                os.lchown(path, user, -1)
    arguments.record.write_text(
        json.dumps({**vars(planted), "files": {str(top): inventory(top) for top in tops}})
    )


def changes(record: Path) -> str:
    """Return what is no longer as it was written down, a line each; and remove what stands where
    all users have theirs."""
    found = json.loads(record.read_text())
    files = found.pop("files")
    changed = [Databases(**found).changes() if found["url"] else ""]
    changed += [differences(before, inventory(Path(top))) for top, before in files.items()]
    for top in map(Path, files):
        if top.name.startswith("dbclone-"):
            shutil.rmtree(top, ignore_errors=True)
    return "\n".join(filter(None, changed))


def main() -> int:
    """Plant, and after other commands compare: say what differs, and fail if anything does."""
    parser = argparse.ArgumentParser(prog="python -m tests.developer", description=main.__doc__)
    parser.add_argument("act", choices=["plant", "compare"])
    parser.add_argument("record", type=Path, help="file for what was planted")
    parser.add_argument("--url", default="", help="plant databases on this server, as a superuser")
    parser.add_argument(
        "--database", action="append", default=[], metavar="NAME", help="one more database there"
    )
    parser.add_argument(
        "--folder", action="append", type=Path, default=[], help="plant files in it"
    )
    parser.add_argument("--owner", type=int, metavar="UID", help="whose files they are")
    arguments = parser.parse_args()
    if arguments.act == "plant":
        plant(arguments)
        return 0
    changed = changes(arguments.record)
    print(f"touched:\n{changed}" if changed else "nothing of the developer's was touched")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
