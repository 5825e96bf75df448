"""Our interface definitions, and the descriptors compiled from them."""
