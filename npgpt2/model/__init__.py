"""The reference, read in one sitting: GPT-2 from config and parameters to logits.

Arrays in, arrays out: no weights files, no text, no command line. `fast` has faster
forms of two operations of `ops`.
"""
