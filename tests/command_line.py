"""Run the command line in the tests' own process, and the environment of other processes."""

import os
import warnings

from npgpt2 import cli


def uncovered():
    """Environment for processes without coverage, which takes time and writes files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def runner(capture):
    """Return a function: arguments → exit code, standard output, standard error.

    `capture` is pytest's capsys, or capfd to include what a library writes past Python.
    """

    def call(*args):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                code = cli.main([str(arg) for arg in args])
            except SystemExit as stop:
                code = stop.code
        return code, *capture.readouterr()

    return call
