"""Golden references: numbers to compare a port of GPT-2 with, and a diagnosis where they differ.

What a stored number means changes only with the version of the schema.
"""

from npgpt2.golden.check import Report, check
from npgpt2.golden.write import write

__all__ = ["Report", "check", "write"]
