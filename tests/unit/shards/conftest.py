"""Small shards and runs with random content."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from zsq.core.imagespec import ImageSpec
from zsq.shards.manifest import Manifest, library_versions, write_manifest
from zsq.shards.schema import ShardContent, ShardProvenance, shard_name
from zsq.shards.writer import write_shard

NUM_CLASSES = 10
SPEC = ImageSpec(channels=3, size=(6, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.25))
SIZES = (4, 4, 3)


@pytest.fixture
def make_content():
    def make(num_images=4, seed=0, targets=True, logits=True, boxes=False, attention=False):
        random = np.random.default_rng(seed)
        probabilities = random.dirichlet(np.ones(NUM_CLASSES), num_images).astype(np.float16)
        return ShardContent(
            pixels=random.integers(0, 256, (num_images, *SPEC.shape), dtype=np.uint8),
            labels=random.integers(-1, NUM_CLASSES, num_images),
            logits=random.normal(size=(num_images, NUM_CLASSES)).astype(np.float32) if logits else None,
            bn_distance=random.random(num_images).astype(np.float32),
            targets=probabilities if targets else None,
            boxes=tuple(make_boxes(random) for _ in range(num_images)) if boxes else None,
            patch_entropy=random.normal(size=num_images).astype(np.float32) if attention else None,
            head_similarity=random.random(num_images).astype(np.float32) if attention else None,
        )

    return make


def make_boxes(random):
    """None to three boxes in an image of SPEC."""
    count = int(random.integers(0, 4))
    corners = random.uniform(0, 2, (count, 4)) + np.array([0, 0, 2, 2])
    labels = random.integers(0, NUM_CLASSES, count)
    return {"boxes": torch.from_numpy(corners).float(), "labels": torch.from_numpy(labels)}


@pytest.fixture
def provenance():
    return ShardProvenance(
        teacher="embedded:digits",
        teacher_sha256="ab" * 32,
        spec=SPEC,
        method="dsg",
        options={"iterations": 500, "lr": 0.1, "milestones": [100, 200], "note": "é"},
        seed=7,
        groups=(0,),
        first_image=0,
        data_read="none",
    )


@pytest.fixture
def make_run(tmp_path, make_content, provenance):
    """Writes a run of three shards of 4, 4 and 3 images; returns (run folder, contents)."""

    def make(name="run", manifest=True, **overrides):
        run = tmp_path / name
        contents, entries, first = [], [], 0
        for index, size in enumerate(SIZES):
            content = make_content(size, seed=index, **overrides)
            made = replace(provenance, groups=(index,), first_image=first)
            entries.append(write_shard(run / "shards" / shard_name(index), content, made))
            contents.append(content)
            first += size
        if manifest:
            write_manifest(run, make_manifest(provenance, entries))
        return run, contents

    return make


def make_manifest(provenance, entries, **overrides):
    config = {"method": provenance.method, "count": sum(entry.num_images for entry in entries)}
    values = {
        "zsq_version": "0.1.0",
        "libraries": library_versions(),
        "device": "cpu",
        "runtime": {"threads": 1},
        "config": config,
        "config_sha256": hashlib.sha256(json.dumps(config).encode()).hexdigest(),
        "teacher": {
            "name": provenance.teacher,
            "weights_sha256": provenance.teacher_sha256,
            "task": "classify",
            "num_outputs": NUM_CLASSES,
            "num_classes": NUM_CLASSES,
            "image_spec": provenance.spec,
        },
        "method": {
            "name": provenance.method,
            "options": provenance.options,
            "data_read": provenance.data_read,
        },
        "seed": provenance.seed,
        "num_images": config["count"],
        "shards": entries,
        "seconds": 1.5,
        "image_iterations_per_second": 100.0,
        "data_read": provenance.data_read,
    }
    return Manifest.model_validate(values | overrides)


@pytest.fixture
def manifest_of():
    return make_manifest
