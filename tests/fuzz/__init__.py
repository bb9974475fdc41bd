"""Fuzz every reader of files from outside: `python -m tests.fuzz --help`.

An input is a folder, here a table of file name → bytes. `targets.py` has each reader's seeds and
what must hold. `mutate.py` damages an input. `worker.py` opens it in its own process and measures.
`run.py` keeps inputs that reach new lines, and reports. `corpus/TARGET/` has inputs that once broke
a reader; they are folders that any command of npgpt2 can open.

The library for this would be atheris. It has wheels only for Linux on x86_64 with Python 3.11 to
3.13, and does not measure memory or processor time per input.
"""
