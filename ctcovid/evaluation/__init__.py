"""Metrics, bootstrap intervals, significance tests, and the aggregation of volumes to scans."""
