"""dbclone as pytest sees it: hooks, options, fixtures, the marker, the summary.

Begin with `plugin`. What a run does is decided in `runner`; `items` says which tests are isolated,
`handles` keeps the application's handle from connecting outside of them, `state` is what one
process knows of its run.
"""
