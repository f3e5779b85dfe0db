"""The folder of everything that is fetched or kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``SWAA_HOME``, else the platform's cache folder for swaa."""
    import platformdirs

    chosen = os.environ.get("SWAA_HOME")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("swaa")
