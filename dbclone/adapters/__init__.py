"""What dbclone knows of other libraries, one module each: peewee, SQLAlchemy, psycopg_pool.

Here lives how models become a schema, and how a handle is led to a clone or into a sandbox; not
when that is done (`clone`, `reset`), nor what a sandbox is. Begin with `base`, the interface.
`discovery` finds the adapter of an object, `handles` is what other packages use, `following` keeps
hold of a handle that the application changes, `hooks` are the doors that every use of it passes.
"""
