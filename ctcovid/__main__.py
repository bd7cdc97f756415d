"""``python -m ctcovid``, the same as ``ctcovid``."""

from ctcovid.cli import main

main()
