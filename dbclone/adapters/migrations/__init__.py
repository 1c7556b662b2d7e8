"""Migration tools as a schema: Alembic, Django's `migrate`, Flask-Migrate.

Begin with `source`, which recognises a tool and runs it in a process of its own. `child` is that
process, `guard` decides which database its connections reach, `sqlalchemy` and `django` lead the
engines and settings of the tools. Nothing of these libraries is imported in the process of the
tests.
"""
