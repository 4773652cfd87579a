"""Every method makes the same images where the activations of a batch do not fit into memory."""

import functools

import numpy as np
import pytest
import torch
from test_contract import METHODS, suited
from toys import make_teacher

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.engine import attention, statistics
from zsq.engine.chunked import InChunks
from zsq.shards.reader import ShardDataset
from zsq.synthesis import synthesize

# Two ways to the same sum differ in the last bit, and Adam's first step has one length whatever the gradient.
SHARE_ELSEWHERE, LEVELS = 0.01, 1
CHUNKED = [
    name
    for name, cls in METHODS.items()
    if not cls.facts.needs_real and "iterations" in cls.options_class.model_fields
]


@pytest.fixture
def made(tmp_path):
    """Pixels of one batch of 6 images that a method makes in two iterations. Of tsz in one: which boxes an
    output stands for changes at once with a bit of the second gradient."""

    def made(name, folder, **runtime):
        config = GenerateConfig(
            teacher="toy",
            method=name,
            count=6,
            batch=6,
            shard_size=6,
            iterations=1 if name == "tsz" else 2,
            runtime=RuntimeConfig(precision="fp32", threads=1, **runtime),
        )
        run = synthesize.generate(config, tmp_path / folder, teacher=suited(name, make_teacher()))
        return ShardDataset(run).pixels().numpy().astype(int)

    return made


def in_chunks(monkeypatch):
    """From now on at most two images at once; the list of chunked passes."""
    for module in (statistics, attention):
        monkeypatch.setattr(module, "MEMORY_BUDGET", 0)
    called, whole = [], InChunks.__call__

    def two_at_once(self, images, most):
        assert most == 1
        called.append(len(images))
        return whole(self, images, 2)

    monkeypatch.setattr(InChunks, "__call__", two_at_once)
    return called


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_make_the_same_images(name, made, monkeypatch):
    whole = made(name, "whole", compile="off")
    passes = in_chunks(monkeypatch)
    parts = made(name, "parts", compile="off")
    assert np.mean(np.abs(parts - whole) > LEVELS) <= SHARE_ELSEWHERE
    if METHODS[name].facts.needs_batch_norm or METHODS[name].facts.needs_attention:
        assert passes


@pytest.mark.parametrize("name", ["dgh", "dsg", "intraq", "psaq"])
def test_a_compiled_step_compiles_one_chunk(name, made, monkeypatch):
    """The teacher's last layer stands in one graph, of the chunk."""
    batches = []

    def backend(graph, inputs, **options):
        if any("linear" in str(node.target) for node in graph.graph.nodes):
            batches.append(next(len(each) for each in inputs if each.dim() == 4))
        return graph.forward

    whole = made(name, "whole", compile="off")
    in_chunks(monkeypatch)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    # As in a process that has made many sets: torch gives up on functions that it compiled too often.
    with torch._dynamo.config.patch(recompile_limit=1):
        parts = made(name, "parts", compile="on")
    assert batches == [2]
    assert np.mean(np.abs(parts - whole) > LEVELS) <= SHARE_ELSEWHERE
