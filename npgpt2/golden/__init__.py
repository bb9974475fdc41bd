"""Golden references: every number of a GPT-2, to hold a port against; a name for its mistake."""

from npgpt2.golden.check import Report, check
from npgpt2.golden.write import write

__all__ = ["Report", "check", "write"]
