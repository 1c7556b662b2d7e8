"""SQL as text: where statements begin and end, and what one of them does. No connection, no
settings.

Begin with `analysis.analyze`, the one place that tells what a statement is; `statements` is the
lexer and the splitter below it. For others: `analyze`, `Control`, `split`, `without_comments`.
"""
