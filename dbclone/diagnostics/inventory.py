"""All that is in a database, by name: objects with their definitions, sequence positions, digests
of rows.

Two databases that were built alike have equal inventories, because nothing in one depends on object
ids, on the order of rows or on when they were written. What cannot be read is named in `blind`, so
that nobody takes it for equal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

Key = tuple[str, str]
Digest = tuple[int, ...]  # how many, and two sums of hashes
_USER = (
    16384  # oids below are the server's own (FirstNormalObjectId in src/include/access/transam.h)
)
_SCHEMAS = (
    "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"
)
# Rows of a table that are shown of those that differ; rows that are compared one by one for it
_SHOWN, _EXAMINED = 3, 5_000
# Of each kind of object: its name, and what tells it from another of that name. Columns are called
# as they are shown.
# Of a column's options pg_attver is the server's own mark of a definition, which is another each
# time (since the minor releases of November 2026; pg_dump leaves it out, too).
_OBJECTS = {
    "schema": f"""SELECT quote_ident(nspname) AS name, pg_get_userbyid(nspowner) AS owner, nspacl::text AS privileges
        FROM pg_namespace n WHERE {_SCHEMAS}""",
    "relation": f"""SELECT c.oid::regclass::text AS name, relkind AS kind, relpersistence AS persistence, pg_get_userbyid(relowner) AS owner,
        relrowsecurity AS row_security, relforcerowsecurity AS forced_row_security, relreplident AS replica_identity, relispopulated AS populated,
        relacl::text AS privileges, reloptions AS options, m.amname AS access_method, NULLIF(reloftype, 0)::regtype::text AS of_type,
        pg_get_expr(relpartbound, c.oid) AS partition_bound, pg_get_partkeydef(c.oid) AS partition_key,
        CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END AS query,
        array(SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid ORDER BY inhseqno) AS parents
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_am m ON m.oid = relam WHERE {_SCHEMAS}""",
    "column": f"""SELECT c.oid::regclass || '.' || quote_ident(attname) AS name, rank() OVER (PARTITION BY c.oid ORDER BY attnum) AS place,
        format_type(atttypid, atttypmod) AS type, attnotnull AS not_null, attidentity AS identity, attgenerated AS generated,
        pg_get_expr(d.adbin, d.adrelid) AS default, NULLIF(attcollation, 0)::regcollation::text AS collation, attstorage AS storage,
        attcompression AS compression, NULLIF(attstattarget, -1) AS statistics_target, attacl::text AS privileges,
        (SELECT array_agg(o) FROM unnest(attoptions) AS o WHERE o !~ '^pg_attver=') AS options
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0
        LEFT JOIN pg_attrdef d ON adrelid = c.oid AND adnum = attnum WHERE {_SCHEMAS} AND relkind NOT IN ('i', 'I', 'S') AND NOT attisdropped""",
    "constraint": f"""SELECT concat_ws(' of ', quote_ident(conname), coalesce(NULLIF(conrelid, 0)::regclass::text, contypid::regtype::text)) AS name,
        pg_get_constraintdef(k.oid) AS definition, convalidated AS validated, conislocal AS local, coninhcount AS inherited
        FROM pg_constraint k JOIN pg_namespace n ON n.oid = connamespace WHERE {_SCHEMAS}""",
    "index": f"""SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition, indisvalid AS valid, indisready AS ready,
        indisclustered AS clustered, indisreplident AS replica_identity
        FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE {_SCHEMAS}""",
    "sequence": """SELECT seqrelid::regclass::text AS name, seqtypid::regtype::text AS type, seqstart AS start, seqincrement AS increment,
        seqmin AS minimum, seqmax AS maximum, seqcache AS cache, seqcycle AS cycle, (SELECT concat_ws('.', refobjid::regclass, refobjsubid)
        FROM pg_depend WHERE classid = 1259 AND objid = seqrelid AND deptype IN ('a', 'i')) AS owned_by
        FROM pg_sequence JOIN pg_class ON oid = seqrelid WHERE relpersistence <> 't'""",
    "function": f"""SELECT p.oid::regprocedure::text AS name, pg_get_userbyid(proowner) AS owner, proacl::text AS privileges,
        CASE WHEN prokind = 'a' THEN (SELECT concat_ws(' ', aggtransfn, aggfinalfn, aggcombinefn, aggtranstype::regtype, agginitval)
        FROM pg_aggregate WHERE aggfnoid = p.oid) ELSE pg_get_functiondef(p.oid) END AS definition
        FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE {_SCHEMAS}""",
    "trigger": """SELECT concat_ws(' ', CASE WHEN tgisinternal THEN (SELECT quote_ident(conname) FROM pg_constraint k WHERE k.oid = tgconstraint)
        ELSE quote_ident(tgname) END, CASE WHEN tgisinternal THEN tgfoid::regproc::text END, 'on', tgrelid::regclass) AS name,
        tgenabled AS enabled, CASE WHEN NOT tgisinternal THEN pg_get_triggerdef(oid) END AS definition FROM pg_trigger""",
    "rule": f"""SELECT concat_ws(' on ', quote_ident(rulename), ev_class::regclass) AS name, ev_enabled AS enabled, pg_get_ruledef(oid) AS definition
        FROM pg_rewrite WHERE ev_class >= {_USER} AND rulename <> '_RETURN'""",
    "policy": """SELECT concat_ws(' on ', quote_ident(polname), polrelid::regclass) AS name, polcmd AS command, polpermissive AS permissive,
        array(SELECT r::regrole::text FROM unnest(polroles) AS r) AS roles, pg_get_expr(polqual, polrelid) AS using,
        pg_get_expr(polwithcheck, polrelid) AS check FROM pg_policy""",
    "type": f"""SELECT t.oid::regtype::text AS name, typtype AS kind, pg_get_userbyid(typowner) AS owner, typacl::text AS privileges,
        typnotnull AS not_null, typdefault AS default, NULLIF(typbasetype, 0)::regtype::text AS base,
        array(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder) AS labels,
        (SELECT rngsubtype::regtype::text FROM pg_range WHERE rngtypid = t.oid) AS subtype
        FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE {_SCHEMAS}""",
    "extension": """SELECT quote_ident(extname) AS name, extversion AS version, extnamespace::regnamespace::text AS schema,
        array(SELECT r::regclass::text FROM unnest(extconfig) AS r) AS tables FROM pg_extension""",
    "comment": f"""SELECT concat_ws(' ', i.type, i.identity) AS name, description AS text
        FROM pg_description, pg_identify_object(classoid, objoid, objsubid) AS i WHERE objoid >= {_USER} OR objoid = 'public'::regnamespace::oid""",
    "security label": """SELECT concat_ws(' ', provider, i.type, i.identity) AS name, label
        FROM pg_seclabel, pg_identify_object(classoid, objoid, objsubid) AS i""",
    "default privileges": """SELECT concat_ws(' ', defaclrole::regrole, NULLIF(defaclnamespace, 0)::regnamespace, defaclobjtype) AS name,
        defaclacl::text AS privileges FROM pg_default_acl""",
    "event trigger": """SELECT quote_ident(evtname) AS name, evtevent AS event, evtenabled AS enabled, evtfoid::regproc::text AS function,
        evttags::text AS tags FROM pg_event_trigger""",
    "publication": """SELECT quote_ident(pubname) AS name, puballtables AS all_tables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
        array(SELECT prrelid::regclass::text FROM pg_publication_rel WHERE prpubid = p.oid ORDER BY 1) AS tables FROM pg_publication p""",
    "statistics": """SELECT concat_ws('.', stxnamespace::regnamespace, quote_ident(stxname)) AS name, pg_get_statisticsobjdef(oid) AS definition
        FROM pg_statistic_ext""",
    "language": "SELECT quote_ident(lanname) AS name, lanacl::text AS privileges, lanpltrusted AS" " trusted FROM pg_language",
    "cast": f"""SELECT concat_ws(' as ', castsource::regtype, casttarget::regtype) AS name, castfunc::regproc::text AS function,
        castcontext AS context, castmethod AS method FROM pg_cast WHERE oid >= {_USER}""",
    "operator": f"""SELECT oid::regoperator::text AS name, oprcode::text AS function, oprrest::text AS restrict, oprjoin::text AS join
        FROM pg_operator WHERE oid >= {_USER}""",
    "collation": f"""SELECT oid::regcollation::text AS name, collprovider AS provider, collisdeterministic AS deterministic, collcollate::text
        AS collate, collctype::text AS ctype FROM pg_collation WHERE oid >= {_USER}""",
    "text search map": f"""SELECT concat_ws(' ', mapcfg::regconfig, maptokentype, mapseqno) AS name, mapdict::regdictionary::text AS dictionary
        FROM pg_ts_config_map WHERE mapcfg >= {_USER}""",
    "text search dictionary": f"""SELECT oid::regdictionary::text AS name, dictinitoption AS options FROM pg_ts_dict WHERE oid >= {_USER}""",
    # Options may be passwords: a digest shows that they differ.
    "foreign server": """SELECT quote_ident(srvname) AS name, srvtype AS type, srvversion AS version, md5(srvoptions::text) AS options_digest,
        srvacl::text AS privileges FROM pg_foreign_server""",
    "user mapping": """SELECT concat_ws(' for ', quote_ident(srvname), quote_ident(usename)) AS name, md5(umoptions::text) AS options_digest
        FROM pg_user_mappings""",
    "foreign table": "SELECT ftrelid::regclass::text AS name, md5(ftoptions::text) AS options_digest FROM" " pg_foreign_table",
    "setting of the database": """SELECT concat_ws(' ', split_part(s, '=', 1), 'for', NULLIF(setrole, 0)::regrole) AS name,
        substr(s, strpos(s, '=') + 1) AS value FROM pg_db_role_setting, unnest(setconfig) AS s
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())""",
    "the database": """SELECT 'itself' AS name, datacl::text AS privileges, pg_encoding_to_char(encoding) AS encoding, datcollate::text AS collate,
        datctype::text AS ctype FROM pg_database WHERE datname = current_database()""",
    **{
        catalogue[3:].replace("_", " "): f"""SELECT concat_ws(' ', i.type, i.identity) AS name FROM {catalogue} AS c,
        pg_identify_object(c.tableoid, c.oid, 0) AS i WHERE c.oid >= {_USER}"""
        for catalogue in ("pg_conversion", "pg_opclass", "pg_opfamily", "pg_ts_config", "pg_ts_parser", "pg_ts_template", "pg_transform", "pg_am",
                          "pg_foreign_data_wrapper")
    },
}  # fmt: skip
_TABLES = f"""SELECT c.oid::regclass::text, nspname::text, relname::text, relkind::text, relkind = 'f' OR NOT has_table_privilege(c.oid, 'SELECT')
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE {_SCHEMAS} AND relkind IN ('r', 'm', 'S', 'f') AND relispopulated AND relpersistence <> 't' ORDER BY 1"""
_LARGE = """SELECT count(*), coalesce(sum(hashtextextended(md5(lo_get(oid)), 0)), 0), 0 FROM pg_largeobject_metadata"""
_SUMS = "coalesce(sum(hashtextextended({0}, 0)), 0), coalesce(sum(hashtextextended({0}, 1)), 0)"
#: For the sessions that read: nothing that the database says for its sessions, and rows that policies would hide are an error.
OPTIONS = (
    "-c row_security=off -c extra_float_digits=3 -c datestyle=ISO -c intervalstyle=postgres"
    " -c timezone=UTC -c bytea_output=hex"
    " -c lock_timeout=10s -c quote_all_identifiers=off"
)


@dataclass
class Inventory:
    """What a database holds: `objects`, from (kind, name) to the definition; `positions` of
    sequences; `rows` of tables; `blind`, what could not be read, and why. `tables` has the parts of
    the tables' names."""

    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    positions: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Digest] = field(default_factory=dict)
    blind: dict[str, str] = field(default_factory=dict)
    tables: dict[str, sql.Identifier] = field(default_factory=dict)

    @classmethod
    def read(cls, connection: psycopg.Connection[Any]) -> Inventory:
        """Read everything over an autocommit connection that was opened with `OPTIONS`."""
        found = cls()
        for kind, query in _OBJECTS.items():
            for name, definition in connection.execute(
                f"SELECT name, to_jsonb(q) - 'name' FROM ({query}) AS q".encode()
            ):
                found.objects[kind, name] = definition
        for name, schema, relation, kind, closed in connection.execute(_TABLES.encode()).fetchall():
            table = found.tables[name] = sql.Identifier(schema, relation)
            if closed:
                found.blind[name] = (
                    "its rows are elsewhere" if kind == "f" else "the role may not read it"
                )
                continue
            try:
                if kind == "S":
                    position = sql.SQL(
                        "SELECT concat_ws(' ', last_value, is_called) FROM {}"
                    ).format(table)
                    found.positions[name] = _one(connection, position)[0]
                else:
                    whole = sql.SQL('x::text COLLATE "C"')
                    found.rows[name] = _one(connection, _sums(table, [whole]))
            except psycopg.Error as error:
                found.blind[name] = (error.diag.message_primary or type(error).__name__).strip()
        try:
            found.rows["large objects"] = _one(connection, sql.SQL(_LARGE).format())
        except psycopg.Error as error:
            found.blind["large objects"] = (
                error.diag.message_primary or type(error).__name__
            ).strip()
        return found

    def columns(self, connection: psycopg.Connection[Any], name: str) -> dict[str, Digest]:
        """Return the digest of each column of a table."""
        prefix = f"{name}."
        rows = connection.execute(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = %s::regclass"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [prefix[:-1]],
        ).fetchall()
        names = [column for (column,) in rows]
        values = [
            sql.SQL('x.{}::text COLLATE "C"').format(sql.Identifier(column)) for column in names
        ]
        sums = _one(connection, _sums(self.tables[name], values)) if names else ()
        return {
            column: (sums[1 + 2 * place], sums[2 + 2 * place]) for place, column in enumerate(names)
        }

    def examples(self, connection: psycopg.Connection[Any], name: str) -> Counter[str]:
        """Return the rows of a table as text, if they are few."""
        if self.rows[name][0] > _EXAMINED:
            return Counter()
        query = sql.SQL("SELECT x::text FROM ONLY {} AS x").format(self.tables[name])
        return Counter(text for (text,) in connection.execute(query))


def _one(connection: psycopg.Connection[Any], query: sql.Composed) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(int(value) if not isinstance(value, str) else value for value in row)


def _sums(table: sql.Identifier, values: list[Any]) -> sql.Composed:
    sums = sql.SQL(", ").join(sql.SQL(_SUMS).format(value) for value in values)
    return sql.SQL("SELECT count(*), {} FROM ONLY {} AS x").format(sums, table)


def rows_apart(ours: Counter[str], theirs: Counter[str]) -> list[str]:
    """Return the first rows that are in one counter and not in the other."""
    return sorted((ours - theirs).elements())[:_SHOWN]
