"""This operating-system process: clocks that no test can stop, what a fork inherits, locks on
files.

Begin with `forks`: whoever owns a session or a database asks it whether this still is the process
that made it. For others: `clock.monotonic` and `wall`, `clock.wait_until`, `forks.OwnerProcess`,
`file_lock`. Nothing here knows Postgres.
"""
