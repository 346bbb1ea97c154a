"""``python -m gradinv.cli`` does what ``gradinv`` does."""

import sys

from gradinv.cli import main

if __name__ == "__main__":
    sys.exit(main())
