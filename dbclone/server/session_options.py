"""Sessions that last: what a role, a database or a server says against idle sessions and long
transactions does not reach ours.

With a session of ours its leases would end, and whoever prunes would drop what a living run has.
What is said as options of a connection wins over ALTER ROLE, ALTER DATABASE and postgresql.conf,
and RESET comes back to it (PostgreSQL documentation, runtime-config-client, "Statement Behavior",
and config-setting, "Parameter Interaction via SQL").
"""

from __future__ import annotations

#: For a session in which somebody else's statements run: its other limits are the application's
#: business.
OPTIONS = "-c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0"
#: For a session in which only our statements run.
ALONE = f"{OPTIONS} -c statement_timeout=0 -c tcp_user_timeout=0"
#: What no server before 17 knows: one that may be older, and would end the session at once, is not
#: asked for it as a session begins. A value for a query, so that it costs no round trip of its own.
UNTIL_THE_END = (
    "CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 170000"
    " THEN pg_catalog.set_config('transaction_timeout', '0', false) END"
)


def options(major: int) -> str:
    """Return libpq's options that let a session last on a server of this major version."""
    return f"{OPTIONS} -c transaction_timeout=0" if major >= 17 else OPTIONS
