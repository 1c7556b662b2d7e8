"""Undo by dropping everything and building the schema again: what teams do today, kept for
comparison and for those who want it."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ..adapters import handles
from ..errors import ServerError
from ..process.clock import monotonic
from .base import Committing, Outcome, failure
from .state import Condition, Event

# Top-level objects in user schemas, by what DROP calls them; what belongs to an extension goes with
# it, and plpgsql is everywhere.
_OBJECTS = """
WITH bound AS (
         SELECT classid, objid, bool_or(deptype = 'e') AS extension,
                bool_or(deptype IN ('a', 'i')) AS part
         FROM pg_depend WHERE deptype IN ('e', 'a', 'i') GROUP BY 1, 2),
     mine AS (
         SELECT n.oid, nspname FROM pg_namespace n
         LEFT JOIN bound ON classid = 'pg_namespace'::regclass AND objid = n.oid
         WHERE nspname NOT IN ('pg_catalog', 'information_schema')
               AND nspname !~ '^pg_(toast|temp)' AND extension IS NOT TRUE)
SELECT 0, 'EXTENSION', extname::text, NULL, NULL FROM pg_extension WHERE extname <> 'plpgsql'
UNION ALL
SELECT 1, 'SCHEMA', nspname::text, NULL, NULL FROM mine WHERE nspname <> 'public'
UNION ALL
SELECT 2, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                       WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
       nspname::text, relname::text, NULL
FROM pg_class c JOIN mine ON mine.oid = relnamespace
     LEFT JOIN bound ON classid = 'pg_class'::regclass AND objid = c.oid
WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND nspname = 'public' AND extension IS NOT TRUE
      AND (relkind <> 'S' OR part IS NOT TRUE)
UNION ALL
SELECT 3, 'ROUTINE', nspname::text, proname::text, pg_get_function_identity_arguments(p.oid)
FROM pg_proc p JOIN mine ON mine.oid = pronamespace
     LEFT JOIN bound ON classid = 'pg_proc'::regclass AND objid = p.oid
WHERE nspname = 'public' AND extension IS NOT TRUE
UNION ALL
SELECT 4, 'TYPE', nspname::text, typname::text, NULL
FROM pg_type t JOIN mine ON mine.oid = typnamespace
     LEFT JOIN bound ON classid = 'pg_type'::regclass AND objid = t.oid
     LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE nspname = 'public' AND extension IS NOT TRUE
      AND (typtype IN ('e', 'd', 'r') OR typtype = 'c' AND c.relkind = 'c')
ORDER BY 1
"""


def drop_everything(connection: psycopg.Connection[Any]) -> int:
    """Drop all user objects of a database that is ours, extensions and large objects included;
    return how many there were."""
    count = 0
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        for _, kind, schema, name, arguments in cursor.execute(_OBJECTS).fetchall():
            identifier = sql.Identifier(schema) if name is None else sql.Identifier(schema, name)
            # The server quotes the names in a signature itself.
            signature = (
                sql.SQL("({})").format(sql.SQL(arguments)) if arguments is not None else sql.SQL("")
            )
            cursor.execute(
                sql.SQL("DROP {} IF EXISTS {}{} CASCADE").format(
                    sql.SQL(kind), identifier, signature
                )
            )
            count += 1
        cursor.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
        count += max(cursor.rowcount, 0)
    return count


class Rebuild(Committing):
    """Leave the database empty after each test, and fill it before the next."""

    name = "drop"
    fills_empty = True

    def begin(self) -> None:
        """Build the schema, unless the database still is a copy of its template. Raises what the
        schema raises; then nothing of it is there."""
        super().begin()
        state = self.host.state
        if state.condition is not Condition.EMPTY:
            return
        try:
            self.host.build()
        except BaseException:
            with contextlib.suppress(psycopg.Error):  # else its next user finds out
                self._empty()
            raise
        state.note(Event.BUILT)

    def undo(self) -> Outcome:
        """Drop everything."""
        started = monotonic()
        try:
            handles.close(self.host.handle)
            self.host.state.forget()
            return Outcome(self.name, monotonic() - started, self._empty())
        except (psycopg.Error, ServerError) as error:
            return Outcome(
                self.name, 0.0, spoiled=f"not everything could be dropped: {failure(error)}"
            )
        except BaseException:
            # The next test must not find what this one left
            self.host.replace("a reset that failed", quiet=True)
            raise

    def _empty(self) -> int:
        connection = self.host.connect_owner()
        try:
            count = drop_everything(connection)
        finally:
            connection.close()
        self.host.state.note(Event.EMPTIED)
        return count
