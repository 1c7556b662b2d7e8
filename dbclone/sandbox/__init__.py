"""Rollback's machine: many connections of an application inside one real transaction.

Begin with `savepoints`, the pure state machine that turns the application's transactions into
savepoints; `session` is the real connection, `session_lock` decides who may speak, `psycopg3` and
`wire` are what an application's drivers see. When a sandbox is entered and left is decided in
`reset.rollback`.
"""
