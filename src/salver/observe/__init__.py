"""What the server tells of itself: counters, metrics, memory and the access log."""
