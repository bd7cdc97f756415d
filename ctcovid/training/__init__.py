"""The training loop, its recipe, its checkpoints and the folder of a run."""
