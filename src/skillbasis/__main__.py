"""`python -m skillbasis`, which launchers of several processes start; the same as the command `skillbasis`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
