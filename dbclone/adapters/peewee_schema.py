"""peewee models as a schema: which models a project means, and the tables, indexes and sequences they describe."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import peewee
from psycopg import sql

from ..dsn import masking, parse
from ..errors import BuildFailed
from ..schema import Progress, digest


def models_of(thing: Any) -> list[type[peewee.Model]]:
    """Return the models that a list, module, base class or model means, in dependency order."""
    if isinstance(thing, types.ModuleType):
        found = {
            v
            for v in vars(thing).values()
            if isinstance(v, type) and issubclass(v, peewee.Model) and v.__module__ == thing.__name__
        }
        chosen = {model for model in found if not _is_base(model)}
    elif isinstance(thing, type) and thing.__subclasses__():
        queue, chosen = [thing], set()
        while queue:
            model = queue.pop()
            queue += model.__subclasses__()
            if not _is_base(model):
                chosen.add(model)
    elif isinstance(thing, type):
        chosen = {thing}
    else:
        chosen = set(thing)
    return list(peewee.sort_models(chosen))


def _is_base(model: type[peewee.Model]) -> bool:
    """Whether a class only carries settings for others: it has subclasses and declares nothing but the automatic key."""
    return model is peewee.Model or bool(
        model.__subclasses__() and set(model._meta.fields) <= {"id"} and model._meta.auto_increment
    )


def open_database(url: str) -> Any:
    """Return a new peewee database that leads to `url`: over psycopg 3 where peewee knows it (since 4.0), else over psycopg2."""
    dsn = parse(url)
    arguments: dict[str, Any] = {k: (int(v) if k == "port" else v) for k, v in dsn.kwargs.items() if k != "dbname"}
    if hasattr(peewee, "Psycopg3Adapter"):
        arguments["prefer_psycopg3"] = True
    return peewee.PostgresqlDatabase(dsn.get("dbname"), **arguments)


@dataclass(frozen=True)
class PeeweeSchema:
    """Tables, indexes, sequences and schemas of models, in dependency order, foreign-key cycles last."""

    models: tuple[type[peewee.Model], ...]

    def _deferred(self) -> Iterator[tuple[type[peewee.Model], Any]]:
        for model in self.models:
            for field in model._meta.refs:
                if getattr(field, "deferred", False):
                    yield model, field

    def manifest(self) -> Mapping[str, str]:
        offline = peewee.PostgresqlDatabase(None)
        entries = {"peewee": peewee.__version__}
        with offline.bind_ctx(self.models, bind_refs=False, bind_backrefs=False):
            for model in self.models:
                manager = model._schema
                statements = [repr(manager._create_table(safe=False).query())]
                statements += [repr(index.query()) for index in manager._create_indexes(safe=False)]
                statements += [repr(f.sequence) for f in model._meta.sorted_fields if getattr(f, "sequence", None)]
                statements += [repr(manager._create_foreign_key(f).query()) for m, f in self._deferred() if m is model]
                name = f"model {model.__module__}.{model.__qualname__}"
                entries[name] = digest("\n".join([entries.get(name, ""), *statements]).encode())
        return entries

    @masking
    def build(self, url: str, progress: Progress) -> None:
        database = open_database(url)
        model: Any = None
        with database.bind_ctx(self.models, bind_refs=False, bind_backrefs=False), database:
            try:
                for name in dict.fromkeys(m._meta.schema for m in self.models if m._meta.schema):
                    progress(f"creating schema {name}")
                    database.execute_sql(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(name)).as_string(None))
                for model in self.models:
                    progress(f"creating table {model._meta.table_name}")
                    model.create_table(safe=False)
                for model, field in self._deferred():
                    progress(f"creating foreign key {model._meta.table_name}.{field.column_name}")
                    model._schema.create_foreign_key(field)
            except peewee.PeeweeException as error:
                where = f"{model.__module__}.{model.__qualname__}" if model is not None else "the schemas"
                text = str(error).strip() or type(error).__name__
                raise BuildFailed(
                    f"creating {where} failed: {text.splitlines()[0]}",
                    text,
                    "Correct the model; no template was left behind.",
                ) from error
