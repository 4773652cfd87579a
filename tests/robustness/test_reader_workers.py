"""The reader behind a DataLoader: any number of workers, forked or spawned, gives the same images."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from zsq.core.imagespec import ImageSpec
from zsq.shards.reader import ShardDataset
from zsq.shards.schema import ShardContent, ShardProvenance, shard_name
from zsq.shards.writer import write_shard

SPEC = ImageSpec(channels=3, size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
SHARD_SIZE, NUM_SHARDS = 8, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers") / "run"
    random = np.random.default_rng(0)
    for index in range(NUM_SHARDS):
        content = ShardContent(
            pixels=random.integers(0, 256, (SHARD_SIZE, *SPEC.shape), dtype=np.uint8),
            labels=np.arange(SHARD_SIZE) % 4,
            logits=random.normal(size=(SHARD_SIZE, 4)).astype(np.float32),
            bn_distance=np.ones(SHARD_SIZE, np.float32),
        )
        origin = ShardProvenance("t", "ab" * 32, SPEC, "noise", {}, 0, (index,), index * SHARD_SIZE, "none")
        write_shard(folder / "shards" / shard_name(index), content, origin)
    return folder


def epoch(images, workers, context, order):
    loader = DataLoader(
        images,
        batch_size=4,
        sampler=order,
        num_workers=workers,
        multiprocessing_context=context,
    )
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (4, "fork"), (1, "spawn")])
def test_workers_read_the_same_images(workers, context, run):
    images = ShardDataset(run, with_logits=True)
    images[0], images[SHARD_SIZE]  # files are open in the parent when the workers start
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    found = epoch(images, workers, context, order)
    assert found["index"].tolist() == order
    assert torch.equal(found["pixels"], ShardDataset(run).pixels()[order])
    assert torch.equal(found["label"], ShardDataset(run).labels()[order])
    assert found["logits"].shape == (len(images), 4)
    assert torch.equal(images[order[0]]["pixels"], found["pixels"][0])  # the parent's files still work


def test_forked_child_closes_what_it_inherited(run):
    images = ShardDataset(run)
    expected = [images[index]["pixels"] for index in range(0, len(images), SHARD_SIZE)]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            inherited = list(images._opened.values())
            same = all(torch.equal(images[i * SHARD_SIZE]["pixels"], e) for i, e in enumerate(expected))
            code = 0 if same and all(not shard._file for shard in inherited) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for index, image in enumerate(expected):
        assert torch.equal(images[index * SHARD_SIZE]["pixels"], image)
