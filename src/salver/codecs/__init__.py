"""Tensors as JSON, binary and protobuf. Pure bytes; shared by protocols and client."""
