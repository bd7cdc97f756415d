"""Used by all rooms: errors, console, atomic files, run card, signals, worker processes."""
