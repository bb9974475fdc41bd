"""The reference, read in one sitting: GPT-2 from config and parameters to logits.

Arrays in, arrays out: no weights files, no text, no command line. `ops` has the textbook form of
each operation; where another form is faster, it is in `fast`.
"""
