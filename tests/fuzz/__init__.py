"""Fuzzing of every reader of files that come from strangers: `python -m tests.fuzz --help`.

An input is a folder, here a table of file name → bytes. `targets.py` says what each reader is
given to begin with and what has to hold, `mutate.py` damages it, `worker.py` opens it in a process
of its own and measures, `run.py` keeps what reaches new lines and reports. `corpus/TARGET/` has
inputs that once broke a reader; they are folders that any command of npgpt2 can be pointed at.

The library for this would be atheris. It has no wheels but for Linux on x86_64 with Python 3.11 to
3.13, and measures neither memory nor a second of processor time by input.
"""
