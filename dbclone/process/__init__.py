"""This operating-system process: clocks that no test can stop, what a fork inherits, locks on
files.

Begin with `forks`: whoever owns a session or a database asks it whether this still is the process
that made it. `clock.wait_until` is how everybody waits, `project` says whose settings count. For
others: `monotonic`, `wall`, `wait_until`, `OwnerProcess`, `file_lock`. A server is no matter of
this package.
"""
