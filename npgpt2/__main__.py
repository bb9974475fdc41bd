"""`python -m npgpt2` is the command `npgpt2`."""

import sys

from npgpt2.cli import main

sys.exit(main())
