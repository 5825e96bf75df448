"""Salver serves any model to any client: one process, one port, one command."""

from salver.version import __version__

__all__ = ["__version__"]
