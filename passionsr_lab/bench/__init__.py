"""Benchmarks: what the full size takes, and ratios measured side by side in one run."""
