"""Scans on disk: find them, order their slices, read and check them."""
