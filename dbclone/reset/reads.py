"""Which statements only read, told from their text. Pure, and on the safe side: what is not known to read counts as writing."""

from __future__ import annotations

import re
from functools import lru_cache

_LONG = 20_000  # characters: longer texts are not looked at
_READS = re.compile(r"[\s(]*(?:SELECT|WITH|VALUES|TABLE|SHOW)\b", re.I)
_MAY_WRITE = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|INTO|SHARE)\b|;\s*\S|\$\$", re.I)
_CALL = re.compile(r"([\w.]+|\")\s*\(")
# What may stand before a parenthesis: words of SQL, types with a length, and functions that change nothing.
_WORDS = """
all and any array as between by case cast distinct else except exists extract filter from in intersect is join lateral like
materialized not on or over partition recursive row rows select some then to union using values when where with within group
bit char character decimal float interval numeric time timestamp timestamptz varchar varying
abs array_agg array_length avg bool_and bool_or cardinality ceil coalesce concat concat_ws count current_database current_schema
current_setting date_part date_trunc dense_rank every exp first_value floor format generate_series greatest json_agg
json_build_array json_build_object json_object_agg jsonb_agg jsonb_array_elements jsonb_array_length jsonb_build_array
jsonb_build_object jsonb_object_agg lag last_value lead least left length ln log lower ltrim make_date make_interval max md5 min
mod now ntile nullif percent_rank pg_backend_pid plainto_tsquery position power random rank regexp_replace replace right round
row_number row_to_json rtrim sign split_part sqrt string_agg strpos substr substring sum to_char to_date to_json to_jsonb
to_number to_timestamp to_tsquery to_tsvector transaction_timestamp trim trunc ts_rank unnest upper version websearch_to_tsquery
"""
_HARMLESS = frozenset(_WORDS.split())


@lru_cache(maxsize=512)
def only_reads(text: str) -> bool:
    """Return whether a query string certainly changes nothing in the database."""
    if len(text) > _LONG or not _READS.match(text) or _MAY_WRITE.search(text):
        return False
    return all(name.lower().removeprefix("pg_catalog.") in _HARMLESS for name in _CALL.findall(text))
