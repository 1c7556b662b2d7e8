"""A worker's own database, from its copying to its drop, and the isolation of each test in it.

Begin with `clone.Clone`; `isolation.Isolation` is what a test sees of it, the fixture `dbclone`.
`roles` decides as whom the application connects to it, `snapshots` are states put aside, `report`
counts what all of it cost. How writes are undone is in `reset`.
"""
