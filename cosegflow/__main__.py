"""``python -m cosegflow``."""

import sys

from cosegflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
