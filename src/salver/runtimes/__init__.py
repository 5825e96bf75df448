"""One file per framework, which it imports only when used."""
