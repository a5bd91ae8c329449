"""Benchmarks: running, scoring and reporting."""
