"""Scans through models: batching, temperature, flags."""
