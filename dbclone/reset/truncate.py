"""Undo by emptying what was written: ask which tables are dirty, empty those, put moved sequences back.

A table that was empty in the template is dirty when it has storage (pg_relation_size): a false "dirty" costs a DELETE of nothing, a
false "clean" cannot be, because a row needs a page. A seeded table is compared by its rows' places and writers.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import sql

from ..errors import ResetBlocked
from . import Outcome
from .facts import Facts
from .plan import plan


class Truncate:
    """A reset over a control connection, which must see the database as its template left it when this object is made.

    Arguments: `control`, an autocommit connection that the application does not use; `lock_timeout`, in seconds; `name`, of the
    database, for errors.
    """

    def __init__(self, control: psycopg.Connection[Any], lock_timeout: float, name: str, facts: Facts | None = None) -> None:
        self._control = control
        self._lock_timeout = lock_timeout
        self._name = name
        self._facts = facts if facts is not None else Facts.ask(control)
        self._empty = [table.oid for table in self._facts.tables if not table.seeded]
        self._seeded = [table for table in self._facts.tables if table.seeded]
        parts: list[sql.Composable] = [
            sql.SQL("ARRAY(SELECT t FROM unnest(%s::int8[]) AS t WHERE pg_catalog.pg_relation_size(t::oid::regclass) > 0)")
        ]
        parts += [
            sql.SQL("(SELECT (count(*), sum(pg_catalog.hashtextextended(ctid::text || xmin::text, 0)))::text FROM ONLY {})").format(
                table.identifier
            )
            for table in self._seeded
        ]
        self._question = sql.SQL("SELECT {}").format(sql.SQL(", ").join(parts))
        self._before = self._ask()[1:]

    def _ask(self) -> tuple[Any, ...]:
        row = (
            self._control.cursor(row_factory=psycopg.rows.tuple_row).execute(self._question, [self._empty], prepare=True).fetchone()
        )
        assert row is not None
        return tuple(row)

    def before(self) -> None:
        """Do nothing: the previous reset left the database as the template."""

    def restore_sequences(self) -> None:
        """Put sequences back that something other than this reset has left behind."""
        self._facts.sequences.restore(self._control)

    def after(self) -> Outcome:
        """Empty what is dirty. Raises ResetBlocked if another session's locks are in the way for longer than `lock_timeout`."""
        started = time.perf_counter()
        try:
            dirty, *seeds = self._ask()
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedObject):
            return Outcome("truncate", time.perf_counter() - started, spoiled="a table was dropped or renamed")
        changed = [t.oid for t, now, then in zip(self._seeded, seeds, self._before, strict=True) if now != then]
        made = plan(self._facts, [*dirty, *changed])
        if made.impossible:
            return Outcome("truncate", time.perf_counter() - started, len(dirty), spoiled=made.impossible)
        try:
            if made.statements:
                self._empty_tables(made.statements)
            self._facts.sequences.restore(self._control)
        except psycopg.errors.LockNotAvailable:
            raise self._blocked() from None
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedObject, psycopg.errors.InsufficientPrivilege) as error:
            return Outcome("truncate", time.perf_counter() - started, len(dirty), spoiled=str(error).splitlines()[0])
        return Outcome("truncate", time.perf_counter() - started, len(dirty))

    def _empty_tables(self, statements: tuple[sql.Composed, ...]) -> None:
        # row_security = off turns a DELETE that a policy would silently narrow into an error.
        guards = sql.SQL("SET LOCAL lock_timeout = {}; SET LOCAL row_security = off").format(
            f"{round(self._lock_timeout * 1000)}ms"
        )
        # Several statements in one message are one transaction (PostgreSQL documentation, protocol-flow, "Multiple Statements").
        self._control.execute(sql.SQL("; ").join([guards, *statements]))

    def _blocked(self) -> ResetBlocked:
        rows = self._control.execute(
            "SELECT pid, coalesce(usename, '?'), coalesce(state, '?'), coalesce(application_name, ''),"
            " coalesce(left(query, 200), '')"
            " FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND pid <> pg_catalog.pg_backend_pid()"
            " AND backend_type = 'client backend' AND state <> 'idle'"
        ).fetchall()
        who = "\n".join(
            f"Session {pid} of {user} ({application or 'unnamed'}) is {state}, last ran: {query}"
            for pid, user, state, application, query in rows
        )
        return ResetBlocked(
            f'could not reset "{self._name}" in {self._lock_timeout:g} s: another session is in the way',
            who or "It has gone in the meantime.",
            "Close that connection in the test or its fixture"
            " (pytest keeps the variables of a failed test alive, connections included).",
        )
