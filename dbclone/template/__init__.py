"""A template database: found by its fingerprint or built, sealed, published and retired.

Begin with `template.Template.ensure`. `builder` is one build under locks; `requirements`, what a
schema asks of a server before it is built; `emptiness`, whether anything came of it, and where it
went otherwise. What goes into a template is in `schema`.
"""
