"""What may go wrong in a measurement."""


class BenchmarkError(Exception):
    """A measurement that could not be made, or whose answers were wrong."""
