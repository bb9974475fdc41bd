"""Check a refusal: its message, its time and its memory."""

import re
import sys
import tracemalloc

import pytest
from patience import within

MEMORY = 16e6 if sys.version_info >= (3, 11) else 24e6  # Python 3.10's dicts of texts are larger


def says(words, text):
    """Whether a text is exactly these words. A … stands for a library's own words."""
    return re.fullmatch(".*".join(map(re.escape, words.split("…"))), text, re.DOTALL) is not None


def cheaply(error, call):
    """Return the error of a call that takes less than a second and 16 MB."""

    def ends():
        with pytest.raises(error) as caught:
            call()
        return caught.value

    found = within(1, ends)
    tracemalloc.start()  # by itself: it makes Python three times as slow
    try:
        with pytest.raises(error):
            call()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    return found
