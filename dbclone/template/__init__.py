"""A template database: found by its fingerprint or built, sealed, published and retired.

Begin with `template.Template.ensure`. `builder` is one build under locks; `requirements`, what a
schema asks of a server before it is built. What goes into a template is in `schema`.
"""
