"""Has a test changed the schema itself, and committed it? Asked of the catalogues within the
reset's own round trip.

Two ways at once. The definition of a table reaches a prepared statement that names it: `timestamptz
'now'` in it is a constant that is worked out anew whenever the server has to analyse the statement
again (PostgreSQL documentation, sql-prepare, "Notes"), so a changed stamp means that a table, its
columns, indexes, triggers or policies changed. Everything else is counted, by catalogue, rows that
are newer than the last reset counting so much that they show. What these two suspect,
`SchemaDrift.look` finds out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ..transactions import Since

NEW = 1_000_000  # what a new row counts, where an old one counts 1
_USER = (
    16384  # oids below are the server's own (FirstNormalObjectId in src/include/access/transam.h)
)
_TEMP = "(SELECT oid FROM pg_catalog.pg_class WHERE relpersistence = 't')"
_TEMP_SCHEMAS = "(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_')"
# Rows to count in every reset: few, found by index. The other way sees tables and sequences, and
# the indexes that tables get or lose; what is in a schema depends on it.
_PROBES = (
    "pg_class WHERE oid = ANY({others}::oid[])",
    f"pg_proc WHERE oid >= {_USER}",
    "pg_type WHERE oid = ANY({types}::oid[])",
    "pg_enum",
    f"pg_rewrite WHERE ev_class >= {_USER}",
    f"pg_description WHERE objoid >= {_USER}",
    "pg_description WHERE objoid = 2200 AND classoid = 2615",  # of the schema public
    "pg_extension",
    "pg_sequence",
    "pg_constraint WHERE conrelid = 0",
    "pg_depend WHERE refclassid = 2615 AND refobjid = ANY({schemas}::oid[])",
    "pg_event_trigger",
    "pg_publication",
    "pg_default_acl",
    f"pg_cast WHERE oid >= {_USER}",
    f"pg_am WHERE oid >= {_USER}",
    f"pg_language WHERE oid >= {_USER}",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_transform",
    "pg_db_role_setting WHERE setdatabase = {database}",
    "pg_database WHERE oid = {database}",
)
# The same for what relations consist of that the prepared statements cannot name.
_UNREAD = (
    "pg_attribute WHERE attrelid = ANY({unread}::oid[])",
    "pg_attrdef WHERE adrelid = ANY({unread}::oid[])",
    "pg_constraint WHERE conrelid = ANY({unread}::oid[])",
    "pg_index WHERE indrelid = ANY({unread}::oid[])",
    "pg_trigger WHERE tgrelid = ANY({unread}::oid[])",
    "pg_policy WHERE polrelid = ANY({unread}::oid[])",
)
# Everything that a schema is, for the thorough look: (catalogue, column with a name, rows that are
# not temporary).
_CATALOGUES = (
    ("pg_attribute", "attname", f"attrelid NOT IN {_TEMP}"), ("pg_proc", "proname", ""),
    ("pg_type", "typname", f"typnamespace NOT IN {_TEMP_SCHEMAS}"),
    ("pg_constraint", "conname", f"connamespace NOT IN {_TEMP_SCHEMAS}"),
    ("pg_namespace", "nspname", "nspname !~ '^pg_(toast_)?temp_'"),
    ("pg_index", "", f"indrelid NOT IN {_TEMP}"), ("pg_attrdef", "", f"adrelid NOT IN {_TEMP}"),
    ("pg_trigger", "tgname", f"tgrelid NOT IN {_TEMP}"),
    ("pg_rewrite", "", f"ev_class NOT IN {_TEMP}"), ("pg_inherits", "", f"inhrelid NOT IN {_TEMP}"),
    ("pg_policy", "polname", ""), ("pg_enum", "enumlabel", ""), ("pg_extension", "extname", ""),
    ("pg_description", "", ""), ("pg_sequence", "", f"seqrelid NOT IN {_TEMP}"),
    ("pg_partitioned_table", "", f"partrelid NOT IN {_TEMP}"), ("pg_collation", "collname", ""),
    ("pg_cast", "", ""), ("pg_operator", "oprname", ""), ("pg_opclass", "opcname", ""),
    ("pg_opfamily", "opfname", ""), ("pg_amop", "", ""), ("pg_amproc", "", ""),
    ("pg_aggregate", "", ""), ("pg_range", "", ""), ("pg_language", "lanname", ""),
    ("pg_conversion", "conname", ""), ("pg_ts_config", "cfgname", ""), ("pg_ts_config_map", "", ""),
    ("pg_ts_dict", "dictname", ""), ("pg_ts_parser", "prsname", ""),
    ("pg_ts_template", "tmplname", ""), ("pg_statistic_ext", "stxname", ""),
    ("pg_publication", "pubname", ""), ("pg_publication_rel", "", ""),
    ("pg_event_trigger", "evtname", ""), ("pg_default_acl", "", ""),
    ("pg_foreign_server", "srvname", ""), ("pg_foreign_data_wrapper", "fdwname", ""),
    ("pg_foreign_table", "", ""), ("pg_transform", "", ""), ("pg_am", "amname", ""),
    ("pg_seclabel", "", ""), ("pg_init_privs", "", ""),
)  # fmt: skip
# What a TRUNCATE or VACUUM changes in pg_class is left out: file, sizes, freezing, and flags that
# VACUUM corrects later.
_RELATION = """pg_catalog.hashtextextended(ROW(
    relname, relnamespace, reloftype, relowner, relam, reltablespace, relkind, relpersistence,
    relnatts, relchecks, relrowsecurity, relforcerowsecurity, relispopulated, relreplident,
    relispartition, relacl::text, reloptions, relpartbound IS NULL)::text, 0)"""
_RELATIONS = f"""SELECT oid::int8, relname::text, {_RELATION}
    FROM pg_catalog.pg_class WHERE oid >= {_USER} AND relpersistence <> 't' AND relkind <> 't'
    AND relnamespace <> 'pg_toast'::regnamespace"""
# The same for the database itself, whose own row and settings are new in every copy, and so can
# only be compared by what they say. A connection limit from 2^30 on limits nothing and is another
# one in each copy: see `naming.limit_for`.
_ITSELF = """SELECT 1262::int8, 'the database itself', pg_catalog.hashtextextended(ROW(
    datdba, datistemplate, datallowconn, least(datconnlimit, 1073741824), datacl::text,
    (SELECT array_agg(ROW(setrole, setconfig)::text ORDER BY setrole)
     FROM pg_catalog.pg_db_role_setting WHERE setdatabase = d.oid))::text, 0)
    FROM pg_catalog.pg_database AS d WHERE datname = current_database()"""


@dataclass(frozen=True)
class Probes:
    """What tells one database's probes from another's: oids of its user schemas, of itself, of
    types that are not those of relations, of all relations that the prepared statements do not
    name, and of those among them that are no indexes."""

    schemas: list[int]
    database: int
    types: list[int]
    others: list[int]
    unread: list[int]

    @classmethod
    def of(cls, connection: psycopg.Connection[Any], opaque: list[int]) -> Probes:
        """Read them in a database that is equal to its template. Arguments: `opaque`, tables that
        may not be read."""
        row = connection.cursor(row_factory=tuple_row).execute(
            "WITH r AS (SELECT oid::int8, relkind FROM pg_class WHERE oid >= 16384"
            " AND relnamespace <> 'pg_toast'::regnamespace AND (relkind NOT IN ('r', 'S', 't')"
            " OR oid = ANY(%s))) SELECT array(SELECT oid::int8 FROM pg_namespace"
            " WHERE oid >= 16384 OR nspname = 'public'), (SELECT oid::int8 FROM pg_database"
            " WHERE datname = current_database()), array(SELECT t.oid::int8 FROM pg_type t"
            " LEFT JOIN pg_class c ON c.oid = t.typrelid WHERE t.oid >= 16384"
            " AND (c.relkind = 'c' OR t.typrelid = 0 AND t.typelem = 0)), array(SELECT oid"
            " FROM r), array(SELECT oid FROM r WHERE relkind NOT IN ('i', 'I'))",
            [opaque],
        )
        return cls(*(row.fetchone() or ([], 0, [], [], [])))

    def select(self, newer: str) -> sql.Composed:
        """Return the column that counts the catalogues; `newer`, which of their rows are new."""
        values = {name: sql.Literal(value) for name, value in vars(self).items()}
        counted = (
            sql.SQL(
                "(SELECT coalesce(sum(CASE WHEN {} THEN {} ELSE 1 END), 0) FROM pg_catalog.{})"
            ).format(sql.SQL(newer), NEW, sql.SQL(probe).format(**values))
            for probe in (*_PROBES, *(_UNREAD if self.unread else ()))
        )
        return sql.SQL("concat_ws(',', {})").format(sql.SQL(", ").join(counted))


@dataclass
class SchemaDrift:
    """The catalogues as they were in the template: rows of each,
    and what each relation looked like."""

    counts: list[int] = field(default_factory=list)
    relations: dict[int, tuple[str, int]] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether it has been learned."""
        return bool(self.counts)

    def learn(self, connection: psycopg.Connection[Any], since: Since) -> None:
        """Count everything in a database that is equal to its template."""
        counts, rows = self._ask(connection, since)
        self.counts = [count for count, _, _ in counts]
        self.relations = {oid: (name, digest) for oid, name, digest in rows}

    @staticmethod
    def _ask(
        connection: psycopg.Connection[Any], since: Since
    ) -> tuple[list[tuple[int, int, str]], list[tuple[Any, ...]]]:
        newer = since.newer()
        parts = [
            f"SELECT {number}, count(*), count(*) FILTER (WHERE {newer}),"
            f" coalesce((array_agg({name or 'NULL'}::text) FILTER (WHERE {newer}))[1:3], '{{}}')"
            f" FROM pg_catalog.{catalogue} WHERE {condition or 'true'}"
            for number, (catalogue, name, condition) in enumerate(_CATALOGUES)
        ]
        with connection.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(" UNION ALL ".join(parts).encode()).fetchall()
            counts = [
                (count, new, ", ".join(filter(None, names)))
                for _, count, new, names in sorted(rows, key=lambda row: row[0])
            ]
            return counts, cursor.execute(f"{_RELATIONS} UNION ALL {_ITSELF}".encode()).fetchall()

    def look(self, connection: psycopg.Connection[Any], since: Since) -> str:
        """Return what has changed in the schema, in words; an empty string if nothing has."""
        counts, rows = self._ask(connection, since)
        now = {oid: (name, digest) for oid, name, digest in rows}
        gone = [name for oid, (name, _) in self.relations.items() if oid not in now]
        new = [name for oid, (name, _) in now.items() if oid not in self.relations]
        other = [
            name
            for oid, (name, digest) in now.items()
            if oid in self.relations and self.relations[oid] != (name, digest)
        ]
        found = [
            f"{what} {', '.join(names[:3])}"
            for what, names in (("created", new), ("dropped", gone), ("altered", other))
            if names
        ]
        for (catalogue, _, _), before, (count, newer, names) in zip(
            _CATALOGUES, self.counts, counts, strict=True
        ):
            if newer or count != before:
                found.append(f"changed {catalogue}" + (f" ({names})" if names else ""))
        return "; ".join(found[:4])
