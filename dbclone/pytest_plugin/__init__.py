"""dbclone as pytest sees it: hooks, options, fixtures, the marker, the summary.

Begin with `plugin`. What a run does is decided in `runner`; `items` says which tests are isolated,
`state` is what one process knows of its run.
"""
