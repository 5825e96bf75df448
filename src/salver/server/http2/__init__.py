"""HTTP/2: the protocol without sockets, and its connections as the server answers them."""
