"""Where the command line starts: ``gmemd`` and ``python -m gmemd``."""

from __future__ import annotations

import sys

from gmemd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
