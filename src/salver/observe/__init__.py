"""Counters that cost nothing until they are read."""
