"""`./bazelw run //training:quickstart_from_scratch`: the quickstart without a package that training does not need."""

import sys

from training.quickstart.command import main

if __name__ == "__main__":
    sys.exit(main(None, target="//training:quickstart_from_scratch", chat=None, drawing=lambda: None))
