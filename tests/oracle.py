"""Is a database equal to its template? An answer that shares nothing with the code that makes it
so.

`fingerprint` reads every row, sequence, large object and object definition of every user schema;
two databases with equal fingerprints hold the same. Its URL is a superuser's where a schema has
forced policies or other roles' large objects.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

_OURS = 16384  # oids from here on are not the server's own (FirstNormalObjectId in src/include/access/transam.h)
_USER = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"
_CATALOGUE = {
    "relations": f"""SELECT n.nspname, c.relname, c.relkind, c.relpersistence, pg_get_userbyid(c.relowner), c.relrowsecurity, c.relforcerowsecurity,
        c.relreplident, c.relispopulated, c.relispartition, c.relacl::text, c.reloptions::text, m.amname, c.reloftype::regtype::text,
        pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid),
        array(SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid ORDER BY i.inhseqno)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am m ON m.oid = c.relam WHERE {_USER}""",
    "columns": f"""SELECT n.nspname, c.relname, rank() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid), a.attcollation::regcollation::text, a.attstorage,
        a.attcompression, a.attstattarget, a.attacl::text,
        (SELECT array_agg(o) FROM unnest(a.attoptions) AS o WHERE o !~ '^pg_attver=')::text, a.attislocal, a.attinhcount
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE {_USER} AND c.relkind <> 'i' AND NOT a.attisdropped""",
    "constraints": f"""SELECT n.nspname, conname, conrelid::regclass::text, contypid::regtype::text, convalidated, conislocal, coninhcount,
        pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace WHERE {_USER}""",
    "indexes": f"""SELECT pg_get_indexdef(i.indexrelid), indisvalid, indisready, indisclustered, indisreplident FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER}""",
    "functions": f"""SELECT n.nspname, p.proname, pg_get_function_identity_arguments(p.oid), pg_get_userbyid(proowner), proacl::text,
        CASE prokind WHEN 'a' THEN (SELECT concat_ws(',', aggtransfn, aggfinalfn, aggtranstype::regtype, agginitval) FROM pg_aggregate WHERE aggfnoid = p.oid)
        ELSE pg_get_functiondef(p.oid) END FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USER}""",
    "triggers": """SELECT tgrelid::regclass::text, tgenabled, tgisinternal, tgfoid::regproc::text, (SELECT conname FROM pg_constraint k WHERE k.oid = tgconstraint),
        CASE WHEN NOT tgisinternal THEN pg_get_triggerdef(oid) END FROM pg_trigger""",
    "policies": """SELECT polrelid::regclass::text, polname, polcmd, polpermissive, array(SELECT r::regrole::text FROM unnest(polroles) AS r),
        pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) FROM pg_policy""",
    "rules": f"SELECT ev_class::regclass::text, rulename, ev_enabled, pg_get_ruledef(oid) FROM" f" pg_rewrite WHERE ev_class >= {_OURS}",
    "types": f"""SELECT n.nspname, typname, typtype, pg_get_userbyid(typowner), typacl::text, typnotnull, typdefault, typbasetype::regtype::text,
        array(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder),
        (SELECT rngsubtype::regtype::text FROM pg_range WHERE rngtypid = t.oid)
        FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE {_USER}""",
    "schemas": f"SELECT n.nspname, n.nspacl::text, pg_get_userbyid(nspowner) FROM pg_namespace n WHERE" f" {_USER}",
    "extensions": "SELECT extname, extversion, extnamespace::regnamespace::text FROM pg_extension",
    "comments": f"""SELECT i.type, i.identity, description FROM pg_description, pg_identify_object(classoid, objoid, objsubid) AS i
        WHERE objoid >= {_OURS} OR objoid = 'public'::regnamespace::oid""",
    "sequences": """SELECT seqrelid::regclass::text, seqtypid::regtype::text, seqstart, seqincrement, seqmin, seqmax, seqcache, seqcycle,
        (SELECT concat_ws(' ', refobjid::regclass, refobjsubid, deptype) FROM pg_depend WHERE objid = seqrelid AND deptype IN ('a', 'i'))
        FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid WHERE relpersistence <> 't'""",
    "privileges": "SELECT defaclrole::regrole::text, defaclnamespace::regnamespace::text, defaclobjtype," " defaclacl::text FROM pg_default_acl",
    "events": "SELECT evtname, evtevent, evtenabled, evtfoid::regproc::text, evttags::text FROM" " pg_event_trigger",
    "publications": """SELECT pubname, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate,
        array(SELECT prrelid::regclass::text FROM pg_publication_rel WHERE prpubid = p.oid ORDER BY 1) FROM pg_publication p""",
    "statistics": "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext",
    "languages": "SELECT lanname, lanacl::text FROM pg_language",
    "casts": f"SELECT castsource::regtype::text, casttarget::regtype::text, castfunc::regproc::text," f" castcontext, castmethod FROM pg_cast WHERE oid >= {_OURS}",
    "operators": f"SELECT oid::regoperator::text, oprcode::text, oprrest::text, oprjoin::text FROM" f" pg_operator WHERE oid >= {_OURS}",
    "others": " UNION ALL ".join(
        f"SELECT '{catalogue}', i.type, i.identity FROM {catalogue} AS c," f" pg_identify_object(c.tableoid, c.oid, 0) AS i WHERE c.oid >= {_OURS}"
        for catalogue in ("pg_collation", "pg_conversion", "pg_opclass", "pg_opfamily", "pg_ts_config", "pg_ts_dict", "pg_ts_parser",
                          "pg_ts_template", "pg_transform", "pg_am", "pg_foreign_data_wrapper", "pg_foreign_server")
    ),
    "dictionaries": f"SELECT mapcfg::regconfig::text, maptokentype, mapseqno, mapdict::regdictionary::text" f" FROM pg_ts_config_map WHERE mapcfg >= {_OURS}",
    "database": """SELECT CASE WHEN setrole = 0 THEN '' ELSE setrole::regrole::text END, setconfig::text FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION ALL SELECT 'acl', datacl::text FROM pg_database WHERE datname = current_database()""",
}  # fmt: skip
_RELATIONS = f"""SELECT n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {_USER} AND c.relkind IN ('r', 'm', 'S') AND c.relispopulated ORDER BY 1, 2"""
_OBJECTS = """SELECT 'large object ' || oid, concat_ws(' ', pg_get_userbyid(lomowner), lomacl::text, md5(lo_get(oid)),
    obj_description(oid, 'pg_largeobject'))
    FROM pg_largeobject_metadata"""
# What a database says for its sessions must not reach this one; a lock that is never released must
# not stop it.
_OPTIONS = (
    "-c search_path=pg_catalog -c row_security=off -c extra_float_digits=3 -c datestyle=ISO"
    " -c intervalstyle=postgres -c timezone=UTC"
    " -c bytea_output=hex -c client_min_messages=error -c lock_timeout=5s -c"
    " statement_timeout=60s -c quote_all_identifiers=off"
    " -c default_transaction_isolation=repeatable\\ read -c jit=off"
)


def fingerprint(url: str, sequences: bool = True) -> dict[str, str]:
    """Return what is in every table, sequence and large object and in each part of the catalogue,
    by name: short things as they are, long ones as a digest.

    Arguments: `sequences`, leave their positions out where a reset does not promise them.
    """
    found: dict[str, str] = {}
    with psycopg.connect(url, options=_OPTIONS) as connection:
        relations = connection.execute(_RELATIONS.encode()).fetchall()
        parts = [
            _position(*names) if kind == "S" else _rows(*names)
            for *names, kind in relations
            if kind != "S" or sequences
        ]
        parts.append(sql.Composed([sql.SQL(_OBJECTS)]))
        found.update(connection.execute(sql.SQL(" UNION ALL ").join(parts)).fetchall())
        queries = [
            f"(SELECT '{name}', ROW(q.*)::text FROM ({query}) AS q)"
            for name, query in _CATALOGUE.items()
        ]
        catalogue: dict[str, list[str]] = {name: [] for name in _CATALOGUE}
        for name, row in connection.execute(" UNION ALL ".join(queries).encode()):
            catalogue[name].append(row)
    return {**found, **{name: "\n".join(sorted(rows)) for name, rows in catalogue.items()}}


def differences(truth: dict[str, str], found: dict[str, str]) -> str:
    """Return what differs between two fingerprints, a line each way; an empty string if nothing
    does."""
    lines = []
    for name in sorted(truth.keys() | found.keys()):
        before, after = (text.get(name, "(not there)").splitlines() for text in (truth, found))
        if before != after:
            gone, new = (
                [line for line in before if line not in after],
                [line for line in after if line not in before],
            )
            lines += [f"{name}: is missing  {line[:400]}" for line in gone] + [
                f"{name}: is new      {line[:400]}" for line in new
            ]
            lines += [] if gone or new else [f"{name}: one that is there twice or more"]
    return "\n".join(lines)


def _position(schema: str, name: str) -> sql.Composed:
    return sql.SQL("SELECT {}, concat_ws(' ', last_value, is_called) FROM {}").format(
        f"sequence {schema}.{name}", sql.Identifier(schema, name)
    )


def _rows(schema: str, name: str) -> sql.Composed:
    """Return a query of one row: how many there are, their digest, and the beginnings of the first,
    in canonical order."""
    return sql.SQL(
        "SELECT {}, concat_ws(' ', count(*), 'rows', md5(string_agg(s, E'\\n' ORDER BY s)),"
        " left(string_agg(left(s, 100), ' ' ORDER BY s), 1000))"
        ' FROM (SELECT ROW(x.*)::text COLLATE "C" AS s FROM ONLY {} AS x) AS u'
    ).format(f"table {schema}.{name}", sql.Identifier(schema, name))
