"""``python -m gradinv``: the command line, where its script is not on the path."""

from gradinv.cli import main

raise SystemExit(main())
