"""A Postgres server, whoever runs it: how it is found and entered, what it allows, locks and
sessions on it.

Begin with `server.Server`. `dsn` is a URL as a value, `connect` how a session of ours begins and
`session_options` what lets it last, `locks` the leases that prove who lives, `reconnect` what is
done when a connection is lost, `roles` and `shared_objects` what belongs to no database. What is
done to single databases is in `databases`.
"""
