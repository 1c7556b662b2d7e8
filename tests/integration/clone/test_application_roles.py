"""Who the application's role is, and what it takes to have one: asked of the library itself, on a
real server."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import peewee
import psycopg_pool
import pytest
import sqlalchemy

from dbclone.adapters import handles as adapters
from dbclone.clone.clone import Clone
from dbclone.clone.roles import Role
from dbclone.databases import ddl
from dbclone.diagnostics import checks
from dbclone.diagnostics.checks import Patient
from dbclone.errors import SettingsError
from dbclone.server.dsn import Dsn
from dbclone.server.roles import ensure_role
from dbclone.server.server import Server
from dbclone.settings import Settings
from dbclone.template.template import Template


@pytest.fixture
def name() -> str:
    """The name of a role that no other test uses: a server's roles belong to all its databases, and
    none is ever dropped."""
    return f"app_{uuid.uuid4().hex[:8]}"


def run(server: Server, statement: str) -> None:
    server.connection.execute(statement.encode())


@contextlib.contextmanager
def cloned(
    server: Server, folder: Path, schema: str, handle: Any = None, **options: Any
) -> Iterator[Clone]:
    """A clone to which a handle is bound, of a template built from SQL."""
    (folder / "schema.sql").write_text(schema)
    before = server.settings
    server.settings = replace(
        before, name=f"r{uuid.uuid4().hex[:8]}", root=folder, schema=("schema.sql",), **options
    )
    try:
        with Template.ensure(server, adapters.load(server.settings)[0], handle).clone() as clone:
            yield clone
    finally:
        server.settings = before


@pytest.mark.parametrize(
    ("given", "schema", "known"),
    [
        ("LOGIN", "CREATE TABLE item (v int);", False),  # a name that only happens to exist
        ("LOGIN SUPERUSER", "CREATE TABLE item (v int); GRANT SELECT ON item TO {role};", False),
        (
            "LOGIN IN ROLE pg_monitor",
            "CREATE TABLE item (v int); GRANT SELECT ON item TO pg_monitor;",
            False,
        ),
        ("LOGIN", "CREATE TABLE item (v int); GRANT SELECT ON item TO PUBLIC;", False),
        (
            "LOGIN IN ROLE {role}_group",
            "CREATE TABLE item (v int); GRANT SELECT ON item TO {role}_group;",
            True,
        ),
        ("LOGIN", "CREATE TABLE item (v int); GRANT UPDATE (v) ON item TO {role};", True),
        ("LOGIN", "CREATE SCHEMA item AUTHORIZATION {role};", True),
        ("LOGIN", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role};", True),
        (
            "NOLOGIN",
            "CREATE TABLE item (v int); CREATE POLICY p ON item TO {role} USING (true);",
            True,
        ),
    ],
)
def test_a_handles_user_counts_only_if_the_schema_knows_it(
    server: Server, tmp_path: Path, name: str, given: str, schema: str, known: bool
) -> None:
    if "_group" in given:
        run(server, f"CREATE ROLE {name}_group")
    run(server, f"CREATE ROLE {name} {given}".replace("{role}", name))
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://{name}:secret@nowhere.invalid/shop")
    with cloned(server, tmp_path, schema.replace("{role}", name), engine) as clone:
        assert clone.role == (Role(name) if known else None)
        assert clone.choose("auto") == ("truncate" if known else "rollback")
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT session_user::text")) == (
                name if known else "postgres"
            )
        assert bool(clone.report.notes) == known
    with cloned(server, tmp_path, schema.replace("{role}", name), engine, role="postgres") as clone:
        assert clone.role is None
        assert clone.report.notes == []


def test_the_user_of_a_handle_is_found_wherever_it_is_written() -> None:
    """Only said, never tried: nothing here connects. A creator or a listener of the project's own
    is not even called."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("called")

    engine = sqlalchemy.create_engine
    listened = engine("postgresql+psycopg://ann:x@h/d")
    sqlalchemy.event.listen(listened, "do_connect", never)
    database = peewee.PostgresqlDatabase
    handles = {
        engine("postgresql+psycopg://ann:x@h/d"): ("ann", "x"),
        engine("postgresql+psycopg2://bob:y@h/d", connect_args={"user": "ann", "password": "x"}): (
            "ann",
            "x",
        ),
        engine("postgresql+psycopg:///?user=ann&password=x"): ("ann", "x"),
        engine("postgresql+psycopg://ann@h/d"): ("ann", ""),
        engine("postgresql+psycopg://h/d"): ("", ""),
        engine("postgresql+psycopg://ann:x@h/d", creator=never): ("ann", "x"),
        listened: ("ann", "x"),
        database("d", user="ann", password="x"): ("ann", "x"),
        database("postgresql://ann:x@h/d"): ("ann", "x"),
        database("postgresql://ann:x@h/d", prefer_psycopg3=True): ("ann", "x"),
        database("d"): ("", ""),
        database(None): ("", ""),
        psycopg_pool.ConnectionPool("postgresql://ann:x@h/d", open=False): ("ann", "x"),
        psycopg_pool.ConnectionPool(
            "host=h user=bob", open=False, kwargs={"user": "ann", "password": "x"}
        ): ("ann", "x"),
        psycopg_pool.ConnectionPool("host=h", open=False, kwargs=never): ("", ""),
        psycopg_pool.ConnectionPool("", open=False): ("", ""),
    }
    for handle, said in handles.items():
        assert adapters.login(handle) == said
    unset = peewee.Proxy()
    assert adapters.login(unset) == adapters.login(None) == ("", "")
    proxy = peewee.Proxy()
    proxy.initialize(database("d", user="ann"))
    assert adapters.login(proxy) == ("ann", "")
    assert "secret" not in repr(Role("ann", "secret"))


ROWS = """
CREATE TABLE second (v int); ALTER TABLE second ENABLE ROW LEVEL SECURITY; ALTER TABLE second FORCE ROW LEVEL SECURITY;
CREATE TABLE "First"(v int) PARTITION BY RANGE (v); ALTER TABLE "First" ENABLE ROW LEVEL SECURITY;
CREATE TABLE plain (v int); CREATE POLICY asleep ON plain USING (false);
"""


def test_whom_row_level_security_does_not_bind(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn, name: str
) -> None:
    """No superuser, nobody with BYPASSRLS, and no owner but where it is forced on him; of who has
    set a role nothing is said."""

    def said(schema: str = ROWS, url: str = "", **options: str) -> tuple[str, str, str]:
        with (
            Server.open(replace(settings, url=url)) as opened,
            cloned(opened, tmp_path, schema, url=url, **options) as clone,
        ):
            check = checks.role(Patient(opened, 1, template=clone.template))
            return clone.warning, check.verdict, check.why

    why = 'row-level security on public."First" (+1 more) does not bind role postgres, as whom the tests run'
    assert said() == (f"{why}: set role to the application's own", "warning", why)
    plain = role.get("user")
    why = f'row-level security on public."First" does not bind role {plain}, as whom the tests run'
    assert said(url=role.url) == (f"{why}: set role to the application's own", "warning", why)
    run(server, f"ALTER ROLE {plain} BYPASSRLS")
    why = f'row-level security on public."First" (+1 more) does not bind role {plain}, as whom the tests run'
    assert said(url=role.url) == (f"{why}: set role to the application's own", "warning", why)
    run(server, f"ALTER ROLE {plain} NOBYPASSRLS")
    forced = ROWS + 'ALTER TABLE "First" FORCE ROW LEVEL SECURITY;'
    assert said(forced, url=role.url) == (
        "",
        "ok",
        f"the application connects as {plain}, which builds, too",
    )
    assert said("CREATE TABLE plain (v int);") == (
        "",
        "ok",
        "the application connects as postgres, which builds, too",
    )
    for chosen in ("postgres", name):
        assert said(role=chosen) == (
            "",
            "ok",
            f"the application connects as {chosen}, from default",
        )


RIGHTS = (
    "SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls,"
    " rolconnlimit"
    " FROM pg_roles WHERE rolname = %s"
)


def test_a_role_is_made_without_rights_and_one_that_is_there_gets_login_at_most(
    server: Server, name: str
) -> None:
    assert ensure_role(server, name)
    assert server.fetch(RIGHTS, [name]) == [(False, False, False, False, False, False, -1)]
    assert ensure_role(server, name, login=True)
    assert ensure_role(server, name)
    assert server.fetch(RIGHTS, [name]) == [(True, False, False, False, False, False, -1)]
    other = f"{name} \"Ünï'; %s"
    run(server, f"CREATE ROLE {name}_x NOLOGIN CREATEDB BYPASSRLS CONNECTION LIMIT 3")
    assert ensure_role(server, f"{name}_x", login=True)
    assert server.fetch(RIGHTS, [f"{name}_x"]) == [(True, False, False, True, False, True, 3)]
    assert ensure_role(server, other, login=True)
    assert server.fetch(RIGHTS, [other]) == [(True, False, False, False, False, False, -1)]


@pytest.mark.parametrize("impossible", ["pg_mine", "none", "public", "x" * 64, "é" * 32])
def test_a_name_that_no_role_can_have_is_a_fault_of_the_settings(
    server: Server, tmp_path: Path, impossible: str
) -> None:
    with (
        pytest.raises(SettingsError, match=r"cannot be a role|too long for a role"),
        cloned(server, tmp_path, "CREATE TABLE item (v int);", role=impossible),
    ):
        pass
    assert server.fetch("SELECT FROM pg_roles WHERE rolname = %s", [impossible]) == []


def test_another_server_is_only_looked_at(server: Server, settings: Settings, name: str) -> None:
    with Server.open(replace(settings, url=server.dsn.url)) as other:
        assert other.embedded is None
        assert not ensure_role(other, name)
        assert server.fetch(RIGHTS, [name]) == []
        run(server, f"CREATE ROLE {name} NOLOGIN")
        assert ensure_role(other, name, login=True)
        assert server.fetch(RIGHTS, [name])[0][0] is False


def test_many_may_want_the_same_role_at_once(server: Server, settings: Settings, name: str) -> None:
    servers = [Server.open(settings) for _ in range(6)]
    found: list[bool] = []
    start = threading.Barrier(len(servers))

    def want(opened: Server) -> None:
        start.wait()
        found.append(ensure_role(opened, name, login=True))

    threads = [threading.Thread(target=want, args=(opened,)) for opened in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for opened in servers:
        opened.close()
    assert found == [True] * len(servers)


TIMEOUTS = (
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "statement_timeout",
)


@pytest.mark.parametrize(
    "given", ["", "-c idle_in_transaction_session_timeout=7000 -c search_path=other"]
)
def test_a_roles_patience_does_not_end_the_session_of_a_sandbox(
    server: Server, tmp_path: Path, name: str, given: str
) -> None:
    """cases/idle_session_timeout: the transaction is ours. A limit on statements is the
    application's, as in production."""
    known = [
        timeout
        for timeout in TIMEOUTS
        if timeout != "transaction_timeout" or server.facts.major >= 17
    ]
    ensure_role(server, name, login=True)
    for timeout in known:
        run(server, f"ALTER ROLE {name} SET {timeout} = '9s'")
    pool = psycopg_pool.ConnectionPool(
        open=False, min_size=1, kwargs={"options": given} if given else {}
    )
    with cloned(server, tmp_path, "CREATE TABLE item (v int);", pool, role=name) as clone:
        for reset in ("rollback", "truncate"):
            with clone.isolated(reset) as isolation:
                pool.open()
                with pool.connection() as connection:
                    shown = {
                        timeout: connection.execute(f"SHOW {timeout}".encode()).fetchall()[0][0]
                        for timeout in known
                    }
                    path = connection.execute("SHOW search_path").fetchall()[0][0]
                pool.close()
            own = "7s" if given else "9s"
            wanted = {timeout: "0" if reset == "rollback" else "9s" for timeout in known} | {
                "statement_timeout": "9s"
            }
            assert shown == wanted | (
                {"idle_in_transaction_session_timeout": own} if reset == "truncate" else {}
            )
            assert path == ("other" if given else '"$user", public')
            assert isolation.reset == reset


def test_a_builder_who_may_not_end_the_applications_sessions_waits_for_their_end(
    server: Server, settings: Settings, tmp_path: Path, role: Dsn, name: str
) -> None:
    """A session ends a moment after its client has closed it, and DROP DATABASE … WITH (FORCE) may
    not end it sooner."""
    ensure_role(server, name, login=True)
    (tmp_path / "schema.sql").write_text("CREATE TABLE item (v int);")
    pool = psycopg_pool.ConnectionPool(open=False, min_size=8)
    own = replace(
        settings,
        url=role.url,
        name=f"r{uuid.uuid4().hex[:8]}",
        root=tmp_path,
        schema=("schema.sql",),
        role=name,
    )
    with Server.open(own) as opened:
        template = Template.ensure(opened, adapters.load(own)[0], pool)
        for _ in range(3):
            with template.clone() as clone:
                pool.open()
                pool.wait()
            assert clone.report.notes == []
            assert ddl.find(opened, clone.name) is None
