"""What every room may use: errors, console, atomic files, run card, signals."""
