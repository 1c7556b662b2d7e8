"""Looking, with nothing left behind: what is wrong with a server, a project or a template, and what
things cost here.

Begin with `doctor`, which runs the `checks`. `verify` compares a template with a fresh build by an
`inventory` of all objects, `benchmark` measures this server.
"""
