"""Before anything is built: a schema's SQL files, and those that its commands give to psql, are
looked through for what reaches beyond the database being built. Nothing has been made by then, so
nothing has to be undone."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from psycopg import sql

from ..errors import BuildFailed, Error, SettingsError, redacted
from ..schema.programs import elsewhere
from ..schema.scripts import STAND_IN, plans
from ..schema.sources import Command, Schema, SqlFiles, Steps, roles_of
from ..server.roles import ensure_role
from ..server.server import Server


class Found(NamedTuple):
    """What a look through a schema has found: `missing`, roles that it names and that are to be
    made first, on the private server only; `notes`, what will be left out and why, a line for each
    file and reason; `lacking`, the roles for want of which something is."""

    missing: list[str]
    notes: list[str]
    lacking: list[str]


def check(server: Server, schema: Schema) -> Found:
    """Look through a schema before it is built.

    Raises BuildFailed if the schema reaches beyond the database being built, with file, line and
    statement. Nothing is written.
    """
    parts = list(_parts(schema))
    if not any(isinstance(part, (SqlFiles, Command)) for part in parts):
        return Found([], [], [])
    private = server.embedded is not None
    roles = roles_of(server.fetch, private, maker=private)
    try:
        # As one, because a role that one part makes is named by another.
        scripts = [
            script for part in parts if isinstance(part, SqlFiles) for script in part.scripts()
        ]
    except (OSError, SettingsError):  # for the build to say
        return Found([], [], [])
    try:
        found_plans, missing = plans(scripts, roles)
        for part in parts:
            if isinstance(part, Command) and (
                found := elsewhere(part.line, part.settings.root, roles)
            ):
                raise BuildFailed(
                    f"the command would reach beyond the database being built:"
                    f" {found[0].where}: {found[0].what}",
                    "\n".join(
                        [
                            f"{found[0].why} Nothing has been run.",
                            *(f"Also {more.where}: {more.what}" for more in found[1:8]),
                        ]
                    ),
                    found[0].instead,
                )
        notes = [f"{plan.script.shown}: {note}" for plan in found_plans for note in plan.notes]
        return Found(
            missing,
            notes,
            sorted({name for plan in found_plans for name in plan.lacking} - set(missing)),
        )
    except Error as error:
        shown = redacted(error, server.dsn.mask)
    raise shown  # not while the original is being handled, which would become its context


def _parts(schema: Schema) -> list[Schema]:
    return (
        [inner for part in schema.parts for inner in _parts(part)]
        if isinstance(schema, Steps)
        else [schema]
    )


def prepare(server: Server, schema: Schema) -> Found:
    """Check a schema before it is built, and on the private server make the roles that it only
    names.

    Those have no right but what the schema gives them. Their comment tells them apart from roles
    that somebody made on purpose, because nobody may act as one while a schema is built. Raises
    what `check` raises.
    """
    found = check(server, schema)
    for name in found.missing:
        if ensure_role(server, name):
            server.connection.execute(
                sql.SQL("COMMENT ON ROLE {} IS {}").format(
                    sql.Identifier(name), sql.Literal(STAND_IN)
                )
            )
    if found.missing:
        found.notes.append(
            f"made on the private server, in name only, because the schema names it: role"
            f" {', '.join(found.missing)}"
        )
    return found


def on_server(server: Server, schema: Schema) -> Schema:
    """Return a schema as a server builds it: on the private one its SQL files may make roles."""
    if server.embedded is None:
        return schema
    if isinstance(schema, Steps):
        return replace(schema, parts=[on_server(server, part) for part in schema.parts])
    return replace(schema, private=True) if isinstance(schema, SqlFiles) else schema
