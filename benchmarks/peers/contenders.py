"""Who is compared: each contender with its pinned packages, its project and the setting that its
documentation describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .environments import Environment

_PYTEST, _PSYCOPG = "pytest==9.2.0", "psycopg[binary]==3.3.9"
_OURS = Environment(
    "dbclone",
    (_PYTEST, _PSYCOPG, "peewee==4.5.3", "pytest-xdist==3.8.0", "filelock==4.2.11"),
    checkout=True,
)
_OURS_SQLALCHEMY = replace(
    _OURS, name="dbclone-sqlalchemy", requirements=(*_OURS.requirements, "sqlalchemy==2.1.9")
)
_POSTGRESQL = Environment("pytest-postgresql", ("pytest-postgresql==10.0.0", _PYTEST, _PSYCOPG))
_PGTESTDBPY = Environment("pgtestdbpy", ("pgtestdbpy==0.0.1", _PYTEST, _PSYCOPG))
_CLEAN = Environment(
    "pytest-clean-database", ("pytest-clean-database[psql]==1.0.0", "pytest==8.4.2", _PSYCOPG)
)
_DJANGO = Environment(
    "pytest-django",
    (
        "pytest-django==4.14.0",
        'django==5.2.19; python_version < "3.12"',
        'django==6.1.3; python_version >= "3.12"',
        _PYTEST,
        _PSYCOPG,
    ),
)
_SQLALCHEMY = Environment("sqlalchemy", ("sqlalchemy==2.1.9", _PYTEST, _PSYCOPG))


@dataclass(frozen=True)
class Contender:
    """Arguments: `how`, how it isolates tests, in words; `environment`, its packages; `projects`,
    folders below project/ that make its project, later ones on top; `floor`, the contender that
    reaches the database over the same library and isolates nothing, or empty if it is one;
    `package`, whose version is told; `environ` and `options` of pytest, its setting; `counts`,
    whether suites compare counts, which no contender but a floor is spared.
    """

    name: str
    how: str
    environment: Environment
    projects: tuple[str, ...]
    floor: str = ""
    package: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    counts: bool = True


def _floor(
    library: str,
    environment: Environment,
    *projects: str,
    options: tuple[str, ...] = (),
    **environ: str,
) -> Contender:
    how = f"nothing is undone: the floor of what goes over {library}"
    return Contender(
        f"no isolation, {library}",
        how,
        environment,
        projects,
        package=library,
        environ=environ,
        options=options,
        counts=False,
    )


FLOOR = _floor("peewee", _OURS, "kept", options=("-p", "no:dbclone"))
FLOORS = (
    FLOOR,
    _floor("psycopg", _PGTESTDBPY, "kept_psycopg"),
    _floor("django", _DJANGO, "django", "kept_django", PEERS_MARK="{}"),
    _floor("sqlalchemy", _SQLALCHEMY, "sqlalchemy", "kept_sqlalchemy"),
)
_PEEWEE, _PSYCOPG_FLOOR, _DJANGO_FLOOR, _SQLALCHEMY_FLOOR = (floor.name for floor in FLOORS)


def _dbclone(reset: str, how: str, **settings: str) -> Contender:
    name = ", ".join([f"dbclone {reset}", *settings])
    environ = {
        f"DBCLONE_{key.upper()}": value for key, value in {"reset": reset, **settings}.items()
    }
    return Contender(name, how, _OURS, ("kept", "dbclone"), _PEEWEE, "pytest-dbclone", environ)


def _django(name: str, how: str, **mark: bool) -> Contender:
    environ = {"PEERS_MARK": json.dumps(mark)}
    return Contender(
        f"pytest-django {name}", how, _DJANGO, ("django",), _DJANGO_FLOOR, "pytest-django", environ
    )


AUTO = _dbclone(
    "auto",
    "the default; here a rollback, because the application has a handle that can be sandboxed",
)
_OVER_SQLALCHEMY = replace(
    AUTO,
    name="dbclone auto, sqlalchemy",
    how="the default, over SQLAlchemy's engine instead of peewee: beside the SQLAlchemy recipe",
    environment=_OURS_SQLALCHEMY,
    projects=("dbclone_sqlalchemy",),
    floor=_SQLALCHEMY_FLOOR,
)
OURS = (
    AUTO,
    _OVER_SQLALCHEMY,
    _dbclone("auto", "the same, and sequences are put back too", reset_sequences="true"),
    _dbclone("truncate", "tests commit; what differs from the template is put back"),
    _dbclone("clone", "a fresh clone for each test, made while the one before it runs"),
)
PEERS = (
    Contender(
        "pytest-postgresql",
        "postgresql_noproc and its client fixture: a database from a template for each test",
        _POSTGRESQL,
        ("postgresql",),
        _PSYCOPG_FLOOR,
        "pytest-postgresql",
    ),
    Contender(
        "pgtestdbpy",
        "templates() and clone(): a database from a template for each test",
        _PGTESTDBPY,
        ("pgtestdbpy",),
        _PSYCOPG_FLOOR,
        "pgtestdbpy",
    ),
    Contender(
        "pytest-clean-database",
        "clean_db_urls: insert triggers tell which tables to truncate after each test; the"
        " connection is kept",
        _CLEAN,
        ("clean_database",),
        _PSYCOPG_FLOOR,
        "pytest-clean-database",
    ),
    _django("flush", "django_db(transaction=True): a flush after each test", transaction=True),
    _django(
        "flush, all options",
        "django_db(transaction=True, reset_sequences=True, serialized_rollback=True): a"
        " flush, and the rows of migrations again",
        transaction=True,
        reset_sequences=True,
        serialized_rollback=True,
    ),
    _django("rollback", "django_db: each test in a transaction that is rolled back"),
    Contender(
        "SQLAlchemy recipe",
        'a Session in an external transaction, join_transaction_mode="create_savepoint",'
        " rolled back",
        _SQLALCHEMY,
        ("sqlalchemy",),
        _SQLALCHEMY_FLOOR,
        "sqlalchemy",
    ),
)
ALL = (*FLOORS, *OURS, *PEERS)
