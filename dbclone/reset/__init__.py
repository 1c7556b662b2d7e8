"""How what a test wrote is undone: one strategy for each value of the setting `reset`, behind one
small interface.

Begin with `base.Strategy`; `strategies` is the table of them: a new one is one file and one row,
and its name in `settings.RESETS`. `state` is what is known of a database between two tests. Nothing
here makes or drops a database: a strategy asks its host, the clone.
"""
