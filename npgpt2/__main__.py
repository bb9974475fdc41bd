"""The command `npgpt2`, and `python -m npgpt2`.

Nothing is imported before Ctrl-C is heard, by this file or `npgpt2/__init__.py`: as Python hears
it, it shows a traceback.
"""


def main() -> int:
    """Run this process's command line; returns the exit code."""
    try:
        from npgpt2.base import interrupt

        interrupt.hear()
    except KeyboardInterrupt:  # it came before it was heard
        from npgpt2.base import interrupt

        interrupt.end()
    from npgpt2.cli import main as run

    return run()


if __name__ == "__main__":
    import sys

    sys.exit(main())
