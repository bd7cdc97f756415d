"""The processes of one run: how they join, what they exchange, and whether they are alive."""
