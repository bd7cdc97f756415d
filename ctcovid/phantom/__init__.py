"""A small synthetic CC-CCII whose truth is known."""
