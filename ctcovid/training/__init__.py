"""The training loop, its order of batches, its checkpoints and its history."""
