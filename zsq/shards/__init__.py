"""Shards: immutable HDF5 files of images, the manifest that lists them, how both are read and verified."""
