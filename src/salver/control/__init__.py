"""Loops that observe, decide by a pure function, and act."""
