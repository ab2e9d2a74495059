"""The version, of which torch need not be imported to know it."""

__version__ = "0.1.0"
