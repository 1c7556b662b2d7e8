"""Databases on a server, as whole things: named, marked, made, copied, sealed, renamed, dropped,
pruned.

Begin with `ownership`: the one guard before every statement that destroys. `naming` says what ours
are called and what is written on them, `ddl` has the statements, `warm_pool` copies made ahead.
What is inside a database is no matter of this package.
"""
