"""The server that dbclone starts where none is given: its folders, its account, its binaries, its
data.

Begin with `embedded.Embedded`; `cluster` is a data directory and the server in it, `folders` the
only way to make, enter and remove a folder. Everything that differs between operating systems is
here; what leaves this package is a Dsn.
"""
