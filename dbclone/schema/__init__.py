"""What goes into a template: the sources, and the manifest by which a change of one is noticed.

Begin with `sources.Schema`, the two verbs that every source has. `scripts` decides which statements
of SQL files may run, `programs` what a command may call, `environment` what it sees. Sources made
from an ORM's objects and migration tools are in `adapters`; how a template is built is in
`template`. For others: `Schema`, `Manifest`, `digest`, `find_files`.
"""
