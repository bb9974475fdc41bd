"""A folder, a file or a name on the Hugging Face hub → config and parameters; conversion, checks.

No forward pass runs here.
"""
