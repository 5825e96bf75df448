"""Where models and versions come from."""
