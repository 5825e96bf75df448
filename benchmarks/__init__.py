"""Measures Salver against its peers on one machine: `python -m benchmarks`."""
