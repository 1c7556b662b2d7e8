"""SQL as text: where statements begin and end, and what one of them does. No connection, no
settings.

Begin with `analysis.analyze`, the one place that tells what a statement does to its session;
`reach` tells what it reaches beyond its database, and which roles it names; `statements` is the
lexer and the splitter below both. For others: `analyze`, `Control`, `reach`, `naming`, `split`.
"""
