"""`python -m dbclone`: one function per command, and what they print.

Begin with `main`, which has the parser. `scratch` is a database for one command, `stopping` how the
private server is stopped without hurting others. What a command does beyond printing is in the
package of its subject.
"""
