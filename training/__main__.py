"""`python -m training`: see `training.cli`."""

import sys

from training.cli import main

# Ranks on an accelerator start afresh and read this file once more.
if __name__ == "__main__":
    sys.exit(main())
