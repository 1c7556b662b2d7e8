"""Putting back what tests have committed, at the price of what was written.

Begin with `put_back`: it asks what differs (`probe`, `catalog`, `schema_drift`) from what there was
(`baseline`, `seeds`), plans the cheapest statements (`plan`, `prediction`) and runs them.
`strategy` is the setting's name for all that.
"""
