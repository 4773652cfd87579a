"""A run to export, and its exports as numpy reads them."""

import contextlib

import numpy as np
from toys import image_spec

import zsq
import zsq.images.photos
from zsq.config import config_sha256
from zsq.shards.manifest import Manifest, MethodRecord, library_versions, write_manifest
from zsq.shards.schema import ShardContent, ShardProvenance, shard_name
from zsq.shards.writer import write_shard

SIZES = (5, 2)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_run(folder, spec=None, labels=(2, 0, -1, 10, 2, -1, 1)):
    """A run of two shards, all 256 values in its pixels."""
    spec = spec or image_spec(size=(6, 8), mean=MEAN, std=STD)
    numbers = np.random.default_rng(0)
    entries, first = [], 0
    for index, size in enumerate(SIZES):
        pixels = numbers.integers(0, 256, (size, *spec.shape), dtype=np.uint8)
        content = ShardContent(
            pixels=pixels,
            labels=np.array(labels[first : first + size], np.int64),
            logits=None,
            bn_distance=np.full(size, np.nan, np.float32),
        )
        provenance = ShardProvenance(None, None, spec, "toy", {}, 3, (index,), first, "none")
        entries.append(write_shard(folder / "shards" / shard_name(index), content, provenance))
        first += size
    manifest = Manifest(
        zsq_version="0",
        libraries=library_versions(),
        device="cpu",
        runtime={},
        config={},
        config_sha256=config_sha256({}),
        teacher=None,
        method=MethodRecord(name="toy", options={}, data_read="none"),
        seed=3,
        num_images=first,
        shards=tuple(entries),
        seconds=0,
        image_iterations_per_second=0,
        data_read="none",
    )
    write_manifest(folder, manifest)
    return folder


def stored(run):
    dataset = zsq.ShardDataset(run)
    return dataset.pixels().numpy(), dataset.labels().numpy()


def read(folder, record):
    """With numpy, as EXPORT.json says."""
    variables = {}
    with contextlib.chdir(folder):
        exec("\n".join(record.use), variables)
    return np.array(variables["images"]), np.array(variables["labels"])
