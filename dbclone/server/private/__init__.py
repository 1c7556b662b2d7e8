"""The server that dbclone starts where none is given: its folders, its account, its binaries, its
data.

Begin with `server.Embedded`. Everything that differs between operating systems is here; what leaves
this package is a Dsn.
"""
