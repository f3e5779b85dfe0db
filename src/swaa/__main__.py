"""``python -m swaa``: the command line."""

from __future__ import annotations

import sys

from swaa.cli import main

sys.exit(main())
