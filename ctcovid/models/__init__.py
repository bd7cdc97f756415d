"""Networks: the catalogue of architectures, the paper's residual networks, and the registry that is the only door to them."""
