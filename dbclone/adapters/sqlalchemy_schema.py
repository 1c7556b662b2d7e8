"""SQLAlchemy metadata as a schema: which MetaData a project means, and the DDL that it emits."""

from __future__ import annotations

import contextlib
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import MetaData, Table, create_engine, create_mock_engine, event
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable

from ..errors import BuildFailed
from ..schema.manifest import digest
from ..schema.sources import Progress
from ..server.dsn import parse, redacting

_EVENTS = "SQL of the metadata's events"
_CREATES_SCHEMA = re.compile(
    r"create\s+schema\s+(?:if\s+not\s+exists\s+)?(\"(?:[^\"]|\"\")+\"|\w+)", re.I
)
_DRIVER = "postgresql+psycopg://"


def metadata_of(thing: Any) -> list[MetaData]:
    """Return the MetaData that an object means: itself, or that of a declarative base, a mapped
    class, a table, SQLModel, a Flask-SQLAlchemy extension, or of everything in a list or module."""
    if isinstance(thing, MetaData):
        return [thing]
    if isinstance(thing, (list, tuple, set)):
        return list(dict.fromkeys(found for item in thing for found in metadata_of(item)))
    if isinstance(thing, types.ModuleType):
        return [
            found
            for found in metadata_of(
                [v for v in vars(thing).values() if not isinstance(v, types.ModuleType)]
            )
            if found.tables
        ]
    with contextlib.suppress(
        Exception
    ):  # of proxies that lead nowhere yet, as a module's flask.current_app
        if isinstance(found := getattr(thing, "metadata", None), MetaData):
            return [found]
    return []


def _subject(statement: Any) -> str:
    """Return what a statement of DDL is about, for the manifest."""
    element = getattr(statement, "element", None)
    table = element if isinstance(element, Table) else getattr(element, "table", None)
    if isinstance(table, Table):
        return f"table {table.fullname}"
    name = getattr(element, "name", None)
    if not isinstance(name, str):
        return _EVENTS
    schema = getattr(element, "schema", None)
    return f"{type(element).__name__.lower()} {f'{schema}.' if schema else ''}{name}"


def _listeners(target: Any) -> Iterator[str]:
    """Yield the source of the functions that listen to the creation of a table or the metadata."""
    for listener in (*target.dispatch.before_create, *target.dispatch.after_create):
        try:
            yield inspect.getsource(inspect.unwrap(listener))
        except (OSError, TypeError):
            yield getattr(listener, "__qualname__", type(listener).__qualname__)


@dataclass(frozen=True)
class MetadataSchema:
    """What `create_all` makes of one or several MetaData: schemas, enums, sequences, tables,
    indexes, comments, and what their events execute."""

    metadata: tuple[MetaData, ...]

    def _emitted(self) -> dict[str, list[str]]:
        """Return the statements of `create_all`, by what they are about."""
        found: dict[str, list[str]] = {}

        def executor(statement: Any, parameters: Any = None, *_: Any, **__: Any) -> Any:
            text = str(statement.compile(dialect=mock.dialect)) + (
                f" {parameters!r}" if parameters else ""
            )
            found.setdefault(_subject(statement), []).append(text)
            return IteratorResult(SimpleResultMetaData([]), iter([]))

        mock: Any = create_mock_engine(_DRIVER, executor)
        for one in self.metadata:
            before = {subject: list(texts) for subject, texts in found.items()}
            try:
                one.create_all(mock, checkfirst=False)
            except (
                Exception
            ):  # of a listener that needs a real connection: its source stands for what it does
                found.clear()
                found.update(before)
                for table in sorted(one.tables.values(), key=lambda table: table.fullname):
                    for element in (CreateTable(table), *map(CreateIndex, table.indexes)):
                        executor(element)
                    found.setdefault(_EVENTS, []).extend(_listeners(table))
                found.setdefault(_EVENTS, []).extend(_listeners(one))
        return found

    def _schemas(self) -> list[str]:
        """Return the schemas that have to be there first, without those that the metadata's own
        events create."""
        found: dict[str, None] = {}
        for one in self.metadata:
            for table in one.tables.values():
                kinds = [getattr(column.type, "schema", None) for column in table.columns]
                found.update(
                    dict.fromkeys(
                        name for name in (table.schema, *kinds) if isinstance(name, str) and name
                    )
                )
            found.update(dict.fromkeys(s.schema for s in one._sequences.values() if s.schema))
        created = {
            name.strip('"')
            for texts in self._emitted().values()
            for text in texts
            for name in _CREATES_SCHEMA.findall(text)
        }
        return sorted(found.keys() - created)

    def manifest(self) -> Mapping[str, str]:
        entries = {
            "SQLAlchemy": sqlalchemy.__version__,
            **{f"schema {name}": digest(name.encode()) for name in self._schemas()},
        }
        for subject, texts in self._emitted().items():
            # A table's indexes are a set, in another order in each process; what events execute has
            # an order of its own.
            ordered = texts if subject == _EVENTS else sorted(texts)
            entries[subject] = digest("\n".join(ordered).encode())
        return entries

    @redacting
    def build(self, url: str, progress: Progress) -> None:
        engine = create_engine(_DRIVER, connect_args=parse(url).kwargs, poolclass=NullPool)
        statement = ""

        @event.listens_for(engine, "before_cursor_execute")
        def tell(connection: Any, cursor: Any, text: str, *_: Any) -> None:
            nonlocal statement
            statement = text.strip()
            if statement.upper().startswith(("CREATE", "ALTER")):
                progress(" ".join(statement[:200].split())[:60])

        try:
            with engine.begin() as connection:
                for name in self._schemas():
                    connection.execute(CreateSchema(name, if_not_exists=True))
                for one in self.metadata:
                    one.create_all(connection)
        except SQLAlchemyError as error:
            text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
            raise BuildFailed(
                f"creating the tables of SQLAlchemy's metadata failed: {text.splitlines()[0]}",
                "\n".join(
                    [text, *([f"The statement is:\n{statement[:2000]}"] if statement else [])]
                ),
                "Correct the model; no template was left behind.",
            ) from error
