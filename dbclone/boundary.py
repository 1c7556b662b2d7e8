"""Before anything is built: a schema's SQL files, and those that its commands give to psql, are looked through for what reaches
beyond the database being built. Nothing has been made by then, so nothing has to be undone."""

from __future__ import annotations

from dataclasses import replace

from psycopg import sql

from .errors import BuildFailed, Error, SettingsError, masked
from .programs import elsewhere
from .roles import ensure_role
from .schema import Command, Progress, Schema, SqlFiles, Steps, roles_of
from .scripts import STAND_IN, plans
from .server import Server


def check(server: Server, schema: Schema) -> list[str]:
    """Return the roles that a schema names and that are to be made before it is built: on the private server only.

    Raises BuildFailed if the schema reaches beyond the database being built, with file, line and statement. Nothing is written.
    """
    parts = list(_parts(schema))
    if not any(isinstance(part, (SqlFiles, Command)) for part in parts):
        return []
    private = server.embedded is not None
    roles = roles_of(server.fetch, private, maker=private)
    try:
        # As one, because a role that one part makes is named by another.
        scripts = [script for part in parts if isinstance(part, SqlFiles) for script in part.scripts()]
    except (OSError, SettingsError):  # for the build to say
        return []
    try:
        missing = plans(scripts, roles)[1]
        for part in parts:
            if isinstance(part, Command) and (found := elsewhere(part.line, part.settings.root, roles)):
                raise BuildFailed(
                    f"the command would reach beyond the database being built: {found[0].where}: {found[0].what}",
                    "\n".join(
                        [f"{found[0].why} Nothing has been run.", *(f"Also {more.where}: {more.what}" for more in found[1:8])]
                    ),
                    found[0].instead,
                )
        return missing
    except Error as error:
        shown = masked(error, server.dsn.mask, variables=True)
    raise shown  # not while the original is being handled, which would become its context


def _parts(schema: Schema) -> list[Schema]:
    return [inner for part in schema.parts for inner in _parts(part)] if isinstance(schema, Steps) else [schema]


def admitted(server: Server, schema: Schema, progress: Progress) -> Schema:
    """Return a schema as it may be built on a server, having checked it; on the private one, make the roles that it only names.

    Those have no right but what the schema gives them. Their comment tells them apart from roles that somebody made on purpose,
    because nobody may act as one while a schema is built. Raises what `check` raises.
    """
    missing = check(server, schema)
    for name in missing:
        if ensure_role(server, name):
            server.connection.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(name), sql.Literal(STAND_IN)))
    if missing:
        progress(f"made on the private server, in name only, because the schema names them: {', '.join(map(repr, missing))}")
    return _private(schema) if server.embedded is not None else schema


def _private(schema: Schema) -> Schema:
    if isinstance(schema, Steps):
        return replace(schema, parts=[_private(part) for part in schema.parts])
    return replace(schema, private=True) if isinstance(schema, SqlFiles) else schema
