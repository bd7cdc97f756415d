"""How one layer is computed: depth folding, fused passes, kept memory."""
