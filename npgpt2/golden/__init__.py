"""Golden references: numbers to compare a port of GPT-2 with, and a diagnosis where they differ.

What a number in a golden folder means changes only with the number of its schema.
"""

from npgpt2.golden.check import Report, check
from npgpt2.golden.write import write

__all__ = ["Report", "check", "write"]
