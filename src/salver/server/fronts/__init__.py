"""Several front processes on one port, and the parent that says what they serve."""
