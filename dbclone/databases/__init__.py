"""Databases on a server, as whole things: named, marked, made, copied, sealed, renamed, dropped,
pruned.

Begin with `ownership`: the one guard before every statement that destroys. `boundary` looks through
a schema for what reaches beyond the database to be built. `naming` says what ours are called and
what is written on them, `ddl` has the statements, `warm_pool` copies made ahead. What is inside a
database is no matter of this package.
"""
