"""The Python client: `salver.Client` and `salver.AsyncClient`."""
