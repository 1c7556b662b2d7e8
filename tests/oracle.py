"""Is a database equal to its template? An answer that shares nothing with the code that makes it so.

`fingerprint` reads every row, sequence and object definition of every user schema; two databases with equal fingerprints hold the same.
"""

from __future__ import annotations

import hashlib

import psycopg
from psycopg import sql

_USER = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"
_CATALOGUE = {
    "columns": f"""SELECT n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, a.attname,
        format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid), c.relacl::text
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE {_USER} AND c.relkind <> 'i' AND NOT coalesce(a.attisdropped, false)""",
    "constraints": f"""SELECT n.nspname, conname, conrelid::regclass::text, pg_get_constraintdef(k.oid) FROM pg_constraint k
        JOIN pg_namespace n ON n.oid = k.connamespace WHERE {_USER}""",
    "indexes": f"""SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER}""",
    "functions": f"SELECT n.nspname, pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USER} AND prokind <> 'a'",
    "triggers": "SELECT tgrelid::regclass::text, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "policies": "SELECT polrelid::regclass::text, polname, polcmd, pg_get_expr(polqual, polrelid) FROM pg_policy",
    "views": f"SELECT n.nspname, c.relname, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm') AND {_USER}",
    "types": f"SELECT n.nspname, typname, typtype FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE {_USER} AND typtype IN ('e', 'd')",
    "schemas": f"SELECT n.nspname, n.nspacl::text FROM pg_namespace n WHERE {_USER}",
    "extensions": "SELECT extname, extversion FROM pg_extension",
    "relations": f"SELECT n.nspname, c.relname, c.relkind, c.relispopulated, c.reloptions::text, c.relacl::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER}",
    "attributes": f"SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER} AND a.attnum > 0 AND NOT a.attisdropped",
    "sequence definitions": "SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmax, seqmin, seqcache, seqcycle FROM pg_sequence",
    "privileges of functions": f"SELECT p.oid::regprocedure::text, p.proacl::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USER}",
    "domains": "SELECT typname, typdefault FROM pg_type WHERE typtype = 'd' AND oid >= 16384",
    "labels of enums": "SELECT enumtypid::regtype::text, enumlabel FROM pg_enum ORDER BY enumsortorder",
    "inheritance": "SELECT inhrelid::regclass::text, inhparent::regclass::text FROM pg_inherits",
    "comments": "SELECT classoid::regclass::text, objoid::int8, objsubid, description FROM pg_description WHERE objoid >= 16384",
    "collations": "SELECT collname FROM pg_collation WHERE oid >= 16384",
    "casts": "SELECT count(*) FROM pg_cast",
    "operators": "SELECT oprname, oprcode::text FROM pg_operator WHERE oid >= 16384",
    "extended statistics": "SELECT stxname FROM pg_statistic_ext",
    "default privileges": "SELECT defaclrole::regrole::text, defaclobjtype, defaclacl::text FROM pg_default_acl",
    "settings": "SELECT setrole::regrole::text, setconfig::text FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
    "large objects": "SELECT oid::int8, lomacl::text, encode(lo_get(oid), 'hex') FROM pg_largeobject_metadata",
}


def fingerprint(url: str, sequences: bool = True) -> dict[str, str]:
    """Return a digest of every table's rows, every sequence's position and each part of the catalogue, by name.

    Arguments: `sequences`, leave them out where a reset does not promise them.
    """
    found = {}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET search_path = pg_catalog")
        connection.execute("SET row_security = off")
        relations = connection.execute(
            f"SELECT n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER} AND c.relkind IN ('r', 'm', 'S') AND c.relispopulated"
        ).fetchall()
        for schema, name, kind in sorted(relations):
            identifier = sql.Identifier(schema, name)
            if kind == "S":
                if sequences:
                    row = connection.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(identifier)).fetchone()
                    found[f"sequence {schema}.{name}"] = str(row)
            else:
                rows = connection.execute(
                    sql.SQL('SELECT t::text COLLATE "C" FROM ONLY {} AS t ORDER BY 1').format(identifier)
                ).fetchall()
                found[f"table {schema}.{name}"] = f"{len(rows)} rows {_digest(rows)}"
        for name, query in _CATALOGUE.items():
            found[name] = _digest(sorted(map(str, connection.execute(query.encode()).fetchall())))
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]
