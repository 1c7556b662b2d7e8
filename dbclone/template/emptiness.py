"""Whether a schema has made anything in the database that it was given, and where it may have gone
instead."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from ..errors import BuildFailed, SettingsError
from ..schema.environment import ENV_FILES
from ..schema.sources import Command, Function, Schema, Steps
from ..server.dsn import mask_any, parse

#: Catalogues of which a new database has no row of a user's (oid from 16384 on:
#: FirstNormalObjectId, access/transam.h).
_CATALOGUES = (
    "pg_class", "pg_type", "pg_proc", "pg_namespace", "pg_extension", "pg_operator", "pg_opclass",
    "pg_opfamily", "pg_am", "pg_cast", "pg_conversion", "pg_collation", "pg_language",
    "pg_ts_config", "pg_ts_dict", "pg_ts_parser", "pg_ts_template", "pg_event_trigger",
    "pg_publication", "pg_foreign_data_wrapper", "pg_foreign_server", "pg_default_acl",
    "pg_transform", "pg_largeobject_metadata",
)  # fmt: skip
_QUESTION = sql.SQL("SELECT {}").format(
    sql.SQL(" OR ").join(
        sql.SQL("EXISTS (SELECT FROM {} WHERE oid >= 16384)").format(
            sql.Identifier("pg_catalog", name)
        )
        for name in _CATALOGUES
    )
)
#: Files in which tools look for their database.
_FILES = (
    *ENV_FILES, "alembic.ini", "database.yml", "config/database.yml", "dbconfig.yml", "flyway.conf",
    "conf/flyway.conf", "flyway.toml", "liquibase.properties", "prisma/schema.prisma",
    "sqitch.conf", "yoyo.ini",
)  # fmt: skip
_URL = re.compile(r"\b(?:postgres(?:ql)?(?:\+\w+)?|postgis|psql|pgsql)://[^\s\"'<>`,)]+", re.I)
_NAME = re.compile(
    r"^\s*(?:database|dbname)\s*[:=]\s*['\"]?([\w-]+)|\bdbname\s*=\s*['\"]?([\w-]+)", re.M
)


def check(connection: psycopg.Connection[Any], schema: Schema) -> None:
    """Raise BuildFailed if code of the project ran for a schema and the database has no object.

    What cannot lead elsewhere is exempt: SQL files run in this very database, so one without a
    statement is meant to make nothing.
    """
    parts = list(schema.parts) if isinstance(schema, Steps) else [schema]
    outside = [part for part in parts if getattr(part, "runs_code", False)]
    outside = [part for part in outside if getattr(part, "key", "") != "seed"]
    if not outside or connection.execute(_QUESTION).fetchone() != (False,):
        return
    suspects = [part for part in outside if isinstance(part, (Command, Function))]
    names = " and ".join(_shown(part) for part in suspects) or "the schema"
    elsewhere = next(
        (found for part in suspects if isinstance(part, Command) for found in _elsewhere(part)),
        None,
    )
    nothing = "no table, type, function, schema or extension"
    if elsewhere is not None:
        file, place = elsewhere
        raise BuildFailed(
            f"{names} made nothing in the database it was given; its {file} names another",
            f"{file} names {place}: what the command made may be there. The database that dbclone"
            f" gave it has {nothing}, so no template was made.",
            f"{_remedy(suspects)} Look at {place}: it may have been changed.",
        )
    raise BuildFailed(
        f"{names} made nothing in the database it was given",
        f"It ended without an error, and the database has {nothing}, so no template was made."
        f" It may have connected elsewhere.",
        f"{_remedy(suspects)} If an empty database is meant, name an SQL file that holds a"
        f" comment.",
    )


def _shown(part: Command | Function) -> str:
    return f"`{mask_any(part.line)}`" if isinstance(part, Command) else f"{part.key} {part.spec}"


def _remedy(suspects: list[Command | Function]) -> str:
    lines = " ".join(part.line for part in suspects if isinstance(part, Command))
    if "alembic" in lines:
        return (
            'Write schema = "alembic", which no file leads elsewhere, or let env.py read'
            " DATABASE_URL."
        )
    if "manage.py" in lines:
        return (
            'Write schema = "manage.py migrate", which no settings lead elsewhere, or let the'
            " settings read DATABASE_URL."
        )
    if lines:
        return (
            "Let it read its database from the environment: DATABASE_URL,"
            " or PGHOST, PGPORT, PGUSER and PGDATABASE."
        )
    return "Let it use the URL that it is called with, or the handle that bind names."


def _elsewhere(command: Command) -> Iterator[tuple[str, str]]:
    """Yield (file, database in words) of what the files of a command and
    those that tools look into name."""
    root = command.settings.root
    words: list[str] = []
    with contextlib.suppress(SettingsError):
        words = command.words()
    # The words of a shell's own command line as well: sh -c "cd db && migrate up".
    words += [inner for word in words if " " in word for inner in _split(word)]
    for name in dict.fromkeys([*words, *_FILES]):
        with contextlib.suppress(OSError, ValueError):
            path = root / name
            if (
                path.is_file()
                and path.stat().st_size < 1_000_000
                and (place := _named(path.read_text(errors="replace")))
            ):
                yield Path(name).as_posix(), place


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _named(text: str) -> str:
    """Return the first database that a text names, in words and without a password; empty if there
    is none."""
    for found in _URL.findall(text):
        with contextlib.suppress(SettingsError):
            dsn = parse(re.sub(r"^\w+(\+\w+)?://", "postgresql://", found))
            if dsn.get("dbname"):
                return f'database "{dsn.get("dbname")}"' + (
                    f" on {dsn.get('host')}" if dsn.get("host") else ""
                )
    match = _NAME.search(text)
    return f'database "{match[1] or match[2]}"' if match else ""
