"""ctcovid with networks a hundred times smaller, for what is not about networks: how runs begin, stop, go on and are written."""

from __future__ import annotations

import sys
from pathlib import Path

from ctcovid.cli import main
from ctcovid.models import resnet3d

# Channels of the four stages, in place of 64 to 512.
WIDTHS = (8, 8, 16, 16)
# Stands in a command line for ``python -m ctcovid``.
THIN = [sys.executable, str(Path(__file__).resolve())]

if __name__ == "__main__":
    resnet3d.WIDTHS = WIDTHS
    main()
