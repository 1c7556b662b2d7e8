"""How tests reach the database, the same over every library: `execute`, `transaction`, and a second
connection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

Rows = list[tuple[Any, ...]]


class Handle:
    """Arguments: `url` of the database that the test is in."""

    def __init__(self, url: str) -> None:
        self.url = url

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run one statement over the application's own connection and return its rows."""
        raise NotImplementedError

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end of the block, as an application does."""
        raise NotImplementedError
        yield

    @contextlib.contextmanager
    def second(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield another connection to the same database, as another process has it; it commits each
        statement."""
        options = "-c lock_timeout=10s -c statement_timeout=20s"
        with contextlib.closing(
            psycopg.connect(self.url, autocommit=True, options=options)
        ) as connection:
            yield connection


class Psycopg(Handle):
    """Over a psycopg connection, in autocommit mode or not."""

    def __init__(self, connection: psycopg.Connection[Any], url: str) -> None:
        super().__init__(url)
        self.connection = connection

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> Rows:
        cursor = self.connection.execute(query, parameters or None)
        return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        if self.connection.autocommit:
            with self.connection.transaction():
                yield
            return
        try:
            yield
        except BaseException:
            self.connection.rollback()
            raise
        self.connection.commit()


class Peewee(Handle):
    """Over a peewee Database."""

    def __init__(self, database: Any, url: str) -> None:
        super().__init__(url)
        self.database = database

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> Rows:
        cursor = self.database.execute_sql(query, parameters or None)
        return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self.database.atomic():
            yield


class Sessioned(Handle):
    """Over a Session of SQLAlchemy."""

    def __init__(self, session: Any, url: str) -> None:
        super().__init__(url)
        self.session = session

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> Rows:
        result = self.session.connection().exec_driver_sql(query, tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.session.rollback()
            raise
        self.session.commit()


class Django(Handle):
    """Over Django's connection; `atomic` is its django.db.transaction.atomic."""

    def __init__(self, connection: Any, atomic: Any, url: str) -> None:
        super().__init__(url)
        self.connection = connection
        self.atomic = atomic

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> Rows:
        with self.connection.cursor() as cursor:
            cursor.execute(query, parameters or None)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self.atomic():
            yield
