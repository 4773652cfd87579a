"""Writes: a whole file or none, whatever happens in between.

A shard is laid out in memory by HDF5 and reaches the disk as plain bytes, so that a full disk is met here and
not inside the HDF5 library. Same content, same bytes: no timestamps, a fixed file version, a fixed order.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import h5py
import numpy as np

from zsq.core.files import atomic_write_bytes
from zsq.shards.schema import BOX_ARRAYS, ShardContent, ShardEntry, ShardProvenance, check_content

# The first HDF5 version whose metadata carries checksums everywhere; fixed on both sides for equal bytes.
HDF5_VERSION = h5py.h5f.LIBVER_V110


def write_shard(path: Path, content: ShardContent, provenance: ShardProvenance) -> ShardEntry:
    """Write one shard atomically, replacing whatever is at `path`; returns its manifest line.

    Raises:
        ShardError: the content is not what the schema says.
        StorageError: the disk refused; nothing is left behind.
    """
    check_content(content, provenance.spec, path.name)
    data = _shard_bytes(content, provenance)
    entry = ShardEntry(file=path.name, sha256=hashlib.sha256(data).hexdigest(), num_images=content.num_images)
    atomic_write_bytes(path, data)
    return entry


def _shard_bytes(content: ShardContent, provenance: ShardProvenance) -> memoryview:
    buffer = io.BytesIO()
    with _new_file(buffer) as file:
        for name, value in provenance.attributes().items():
            # Fixed length: variable-length strings are pointers into a heap, which readers refuse.
            file.attrs[name] = np.bytes_(json.dumps(value, sort_keys=True))
        for name, array in content.arrays():
            file.create_dataset(name, data=array, chunks=chunk_shape(name, array.shape), fletcher32=True)
    return buffer.getbuffer()


def _new_file(buffer: io.BytesIO) -> h5py.File:
    """Made by hand, because older h5py cannot be told to leave the root's timestamps out."""
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, buffer)
    access.set_libver_bounds(HDF5_VERSION, HDF5_VERSION)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    return h5py.File(h5py.h5f.create(b"shard", h5py.h5f.ACC_TRUNC, creation, access))


def chunk_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One image's row per chunk; an array of single numbers, and the boxes, in one chunk."""
    return shape if len(shape) == 1 or name in BOX_ARRAYS else (1, *shape[1:])
