"""Connections and cursors of psycopg 3 that lead into a sandbox.

Begin with `connection`, whose docstring says where psycopg is entered. `prepared` is about
statements that psycopg prepares.
"""
