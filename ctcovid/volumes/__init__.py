"""The HDF5 file of slices and depth-n volumes, its splits, and the batches drawn from it."""
