"""The command line, run in the tests' own process."""

import warnings

from npgpt2 import cli


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
