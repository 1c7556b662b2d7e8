"""`python -m dbclone`: one function per command, and what they print.

Begin with `main`, which has the parser. What a command does beyond printing is in the package of
its subject.
"""
