"""One module per command: an Options dataclass and run(options, console)."""
