"""gRPC over HTTP/2: its messages without sockets, and its calls."""
