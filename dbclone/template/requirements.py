"""What a schema asks of the server that not every build of PostgreSQL has: extensions, and
collations of ICU.

Only SQL files can be read before they run; what a command or a callable asks for shows when it
runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import SettingsError, TemplateError
from ..schema.sources import Schema, SqlFiles, Steps, find_files
from ..server.server import Server
from ..sql.statements import split

_COMMENTS = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*", re.S)
_EXTENSION = re.compile(
    r'CREATE\s+EXTENSION\s+(?:IF\s+NOT\s+EXISTS\s+)?("(?:[^"]|"")+"|[^\s";]+)', re.I
)
_ICU = re.compile(r"CREATE\s+COLLATION\b.*\bprovider\s*=\s*'?icu\b", re.I | re.S)


class Feature(NamedTuple):
    """What is asked for: `extension` (empty: ICU), and `where`, file and line."""

    extension: str
    where: str


def scan(schema: Schema) -> Iterator[Feature]:
    """Yield what the SQL files of a schema ask for at the top level."""
    if isinstance(schema, Steps):
        for part in schema.parts:
            yield from scan(part)
    if not isinstance(schema, SqlFiles):
        return
    for path in find_files(schema.settings, "schema", schema.patterns):
        text = path.read_bytes().decode("utf-8-sig", "replace")
        if not re.search("extension|icu", text, re.I):
            continue
        for statement in split(text):
            start = _COMMENTS.match(statement.text)
            command = statement.text[start.end() if start else 0 :]
            where = f"{path.name}:{statement.line}"
            if found := _EXTENSION.match(command):
                name = found[1]
                yield Feature(
                    name[1:-1].replace('""', '"') if name.startswith('"') else name.lower(), where
                )
            elif _ICU.match(command):
                yield Feature("", where)


def check(server: Server, schema: Schema) -> None:
    """Raise TemplateError if the SQL files of a schema ask for what the server does not have."""
    try:
        asked = list(scan(schema))
    except (OSError, SettingsError):  # for the build to say
        return
    if not asked:
        return
    rows = server.fetch("SELECT name::text FROM pg_available_extensions")
    # A build with ICU makes these in initdb; "unicode" is in every build.
    icu = bool(
        server.fetch(
            "SELECT FROM pg_collation WHERE collprovider = 'i' AND collname ~ '-x-icu$' LIMIT 1"
        )
    )
    there = {name for (name,) in rows} | ({""} if icu else set())
    missing = [feature for feature in asked if feature.extension not in there]
    if not missing:
        return
    names = ", ".join(
        dict.fromkeys(
            f"extension {f.extension!r}" if f.extension else "collations of ICU" for f in missing
        )
    )
    build = server.embedded.cluster.binaries if server.embedded is not None else None
    what = f"PostgreSQL {server.version}" + (f" from {build.source}" if build is not None else "")
    hint = "Install it there, or set url to a server that has it"
    raise TemplateError(
        f"the schema needs what {server.where} does not have: {names}",
        f"It is asked for at {', '.join(f.where for f in missing)}; the server is {what}."
        f" Nothing was built.",
        f"{hint}, or binaries to the folder of a build that has it."
        if build is not None
        else f"{hint}.",
    )
