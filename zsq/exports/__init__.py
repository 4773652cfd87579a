"""Shards -> files that other tools read, and back: one file per kind, all listed in `exporting.py`."""
