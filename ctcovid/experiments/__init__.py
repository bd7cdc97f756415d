"""The paper's experiments: which cells, how each is run, and the paper's published values."""
