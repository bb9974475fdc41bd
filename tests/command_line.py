"""The command line, run in the tests' own process; the environment of others."""

import os
import warnings

from npgpt2 import cli


def uncovered():
    """For processes of which coverage is not measured: it takes their time and writes files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


def runner(capture):
    """A function: arguments → exit code, standard output, standard error.

    `capture` is pytest's capsys; or capfd, for what a library writes past Python.
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
