"""The sample project of benchmarks: as many tables as one likes, in families of three, as in a
usual project; and what tests do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from dbclone.schema.manifest import digest
from dbclone.schema.sources import Progress

Connection = psycopg.Connection[Any]
_KINDS = ("customer", "purchase", "item")


@dataclass(frozen=True)
class Shop:
    """A schema of `tables` tables, of which the first has `seeds` rows.

    Each table has a serial key, a text column with an index, and two of three reference the one
    before them. The rows have the keys 1, 2, 3, and a text that is told by the key, so that one
    that was changed can be told too.
    """

    tables: int
    seeds: int = 0

    def name(self, number: int) -> sql.Identifier:
        """Return the name of a table."""
        return sql.Identifier(f"{_KINDS[number % 3]}_{number // 3}")

    @property
    def names(self) -> list[sql.Identifier]:
        return [self.name(number) for number in range(self.tables)]

    @property
    def family(self) -> list[sql.Identifier]:
        """The three tables that tests write to: not the first ones, and without seeds."""
        first = self.tables // 6 * 3
        return self.names[first : first + 3]

    def manifest(self) -> Mapping[str, str]:
        """Tell every input by name and digest: see dbclone.schema.Schema."""
        return {"shop": digest(repr((self, self.created(0, 3))).encode())}

    def build(self, url: str, progress: Progress) -> None:
        """Make the tables in an empty database."""
        progress(f"making {self.tables} tables")
        with psycopg.connect(url, autocommit=True) as connection:
            for start in range(
                0, self.tables, 30
            ):  # each message is one transaction, which locks all that it makes
                connection.execute(self.created(start, min(start + 30, self.tables)))
            connection.execute(self.filled())

    def created(self, start: int = 0, stop: int | None = None) -> sql.Composed:
        """Return the statements that make the tables with these numbers, by default all."""
        statements = []
        for number in range(start, self.tables if stop is None else stop):
            parent = (
                sql.SQL("parent int NOT NULL REFERENCES {}, ").format(self.name(number - 1))
                if number % 3
                else sql.SQL("")
            )
            statements.append(
                sql.SQL(
                    "CREATE TABLE {0} (id serial PRIMARY KEY, {1}note text NOT NULL); CREATE"
                    " INDEX ON {0} (note)"
                ).format(self.name(number), parent)
            )
        return sql.SQL("; ").join(statements)

    def filled(self) -> sql.Composed:
        """Return the statement that makes the seeds."""
        statement = "INSERT INTO {} (note) SELECT 'seed ' || n FROM generate_series(1, {}) AS n"
        return sql.SQL(statement).format(self.name(0), sql.Literal(self.seeds))

    def reseeded(self) -> sql.Composed:
        """Return the statements, for one message, that truncate all tables and make the seeds
        again."""
        return sql.SQL("{} RESTART IDENTITY; {}").format(self.truncated(), self.filled())

    def truncated(self) -> sql.Composed:
        """Return the statement that truncates all tables."""
        return sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(self.names))

    def deleted(self) -> sql.Composed:
        """Return the statements, for one message, that delete from all tables, those that reference
        others first."""
        return sql.SQL("; ").join(
            sql.SQL("DELETE FROM {}").format(name) for name in reversed(self.names)
        )

    def recreated(self) -> sql.Composed:
        """Return the statements, for one message, that drop all tables and make them again."""
        dropped = sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(self.names))
        return sql.SQL("{}; {}").format(dropped, self.created())

    def differing(self, connection: Connection, tables: Sequence[sql.Identifier] = ()) -> int:
        """Return how many rows differ from what `build` made, in the tables that tests write to
        (`tables`, if not those that all tests do) and in the one with seeds."""
        counts = [
            sql.SQL("(SELECT count(*) FROM {})").format(name) for name in tables or self.family
        ]
        if self.seeds:
            for query in (
                "(SELECT {1} - count(*) FILTER (WHERE id <= {1}) FROM {0})",
                "(SELECT count(*) FILTER (WHERE id > {1} OR note <> 'seed ' || id) FROM {0})",
            ):
                counts.append(sql.SQL(query).format(self.name(0), sql.Literal(self.seeds)))
        ((count,),) = connection.execute(
            sql.SQL("SELECT {}").format(sql.SQL(" + ").join(counts))
        ).fetchall()
        return int(count)


class Broken(Exception):
    """A test found something else than what its template has: the reset before it did not work, and
    no figure is worth anything."""


def reads(shop: Shop, connection: Connection, fresh: bool) -> None:
    """Do what a test does that writes nothing."""
    query = sql.SQL("SELECT id FROM {} WHERE note = 'a'").format(shop.family[0])
    if connection.execute(query).fetchall():
        raise Broken("a test that writes nothing found a row")


def inserts(shop: Shop, connection: Connection, fresh: bool) -> None:
    """Insert a row in each of three tables, the later ones referencing the earlier ones.

    Arguments: `fresh`, the sequences have been put back; then the keys tell that the rows of the
    test before are gone, too.
    """
    customer, *others = shop.family
    rows = connection.execute(
        sql.SQL("INSERT INTO {} (note) VALUES ('a') RETURNING id").format(customer)
    ).fetchall()
    for name in others:
        query = sql.SQL("INSERT INTO {} (parent, note) VALUES (%s, 'a') RETURNING id").format(name)
        rows += connection.execute(query, [rows[-1][0]]).fetchall()
    if fresh and rows != [(1,)] * 3:
        raise Broken(f"the keys of new rows were {[key for (key,) in rows]}, and should all be 1")


def updates(shop: Shop, connection: Connection, fresh: bool) -> None:
    """Change one of the seeded rows, which has to be as it was."""
    key = shop.seeds // 2
    query = sql.SQL("UPDATE {} SET note = 'changed' WHERE id = %s AND note = %s").format(
        shop.name(0)
    )
    if connection.execute(query, [key, f"seed {key}"]).rowcount != 1:
        raise Broken(f"seeded row {key} was not what it had been")


@dataclass(frozen=True)
class Spread:
    """What a test does that inserts a row in each of the last `count` tables: one message, whatever
    their number."""

    count: int

    def tables(self, shop: Shop) -> list[sql.Identifier]:
        """Return the names of these tables."""
        return [shop.name(number) for number in self._numbers(shop)]

    def _numbers(self, shop: Shop) -> range:
        first = shop.tables - self.count
        return range(
            first - first % 3, first - first % 3 + self.count
        )  # begins with one that references nobody

    def __call__(self, shop: Shop, connection: Connection, fresh: bool) -> None:
        statements = []
        for number in self._numbers(shop):
            child = sql.SQL("INSERT INTO {0} (parent, note) SELECT max(id), 'a' FROM {1}")
            statement = child if number % 3 else sql.SQL("INSERT INTO {0} (note) VALUES ('a')")
            statements.append(statement.format(shop.name(number), shop.name(number - 1)))
        connection.execute(sql.SQL("; ").join(statements).as_bytes(connection), prepare=False)
