"""Turn queued calls into batches. Pure: no loop, no clock, no I/O."""
