"""Text ↔ token ids by a model's own vocabulary: one file for each kind of vocabulary.

No model and no weights.
"""
