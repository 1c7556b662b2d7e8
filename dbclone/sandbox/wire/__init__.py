"""A sandbox behind PostgreSQL's wire protocol, for psycopg2: a small server in this process,
reached by a local socket.

Begin with `backend`, one client's session; `messages` is the protocol, `server` who talks to a
client, `psycopg2` how that driver is led here.
"""
