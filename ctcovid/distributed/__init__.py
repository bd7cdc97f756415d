"""The processes of one run: what they tell each other, and whether they live."""
