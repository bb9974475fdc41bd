"""HTML pages and PNG pictures of a model: its weights, the tokens of a text, a prompt step by step.

A page loads nothing from another site.
"""
