"""What goes into a template: the sources, and the manifest by which a change of one is noticed.

Begin with `sources.Schema`, the two verbs that every source has. Sources made from an ORM's objects
are in `adapters`; how a template is built from a source is in `template`. For others: `Schema`,
`Manifest`, `digest`, `find_files`.
"""
