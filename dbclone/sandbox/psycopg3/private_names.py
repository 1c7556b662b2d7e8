"""What we lean on that is not ours to lean on: the private names of psycopg that the sandbox uses,
in one list.

psycopg has no public place where all statements of blocking and asynchronous connections pass. A
test holds this list against the installed version and against our code, in both directions; the
dependency has an upper bound for the same reason. `connection` says what each place is entered for.
"""

from __future__ import annotations

from collections.abc import Mapping

#: By class or module: names that we call, override, replace or set.
PRIVATE: Mapping[str, tuple[str, ...]] = {
    "psycopg.Connection": (
        "_adapters", "_autocommit", "_check_connection_ok", "_check_intrans_gen", "_check_tpc",
        "_closed", "_connect_gen", "_exec_command", "_get_connection_params", "_num_transactions",
        "_pipeline", "_pool", "_prepared", "_rollback_gen", "_should_cancel", "_start_query",
    ),
    "psycopg.AsyncConnection": ("_get_connection_params",),
    "psycopg.Cursor": ("_iresult", "_maybe_prepare_gen", "_query", "_set_results", "_start_query"),
    "psycopg.ServerCursor": ("_close_gen", "_declare_gen"),
    "psycopg.Pipeline": ("_conn", "_enqueue_sync"),
    "psycopg.Transaction": ("_exit_gen", "_rollback_gen"),
    "psycopg._connection_base": ("BaseConnection",),
    "psycopg._cursor_base": ("BaseCursor",),
    "psycopg._preparing": ("Prepare", "PrepareManager"),
    "psycopg._preparing.PrepareManager": (
        "_counts", "_names", "_to_flush", "clear", "get", "key", "maybe_add_to_cache",
        "prepare_threshold", "prepared_max", "validate",
    ),
}  # fmt: skip
