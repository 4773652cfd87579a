"""The version of zsq."""

__version__ = "0.1.0"
