"""Entry point of `npgpt2` and of `python -m npgpt2`.

This file and `npgpt2/__init__.py` import nothing before the Ctrl-C handler is set: until then,
Ctrl-C would show a traceback.
"""


def main() -> int:
    """Run the command line of this process and return its exit code."""
    try:
        from npgpt2.base import interrupt

        interrupt.hear()
    except KeyboardInterrupt:  # Ctrl-C came before the handler was set
        from npgpt2.base import interrupt

        interrupt.end()
    from npgpt2.cli import main as run

    return run()


if __name__ == "__main__":
    import sys

    sys.exit(main())
