"""Wire bytes to operations and back. No sockets, no engine."""
