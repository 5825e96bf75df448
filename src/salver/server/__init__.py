"""The only code that touches listening sockets."""
