"""Every method makes the same images where the activations of a batch do not fit into memory."""

import functools

import numpy as np
import pytest
import torch
from test_contract import LEVELS, METHODS, SHARE_ELSEWHERE, pixels_made

from zsq.engine import chunked
from zsq.engine.chunked import InChunks

CHUNKED = [
    name
    for name, cls in METHODS.items()
    if not cls.facts.needs_real and "iterations" in cls.options_class.model_fields
]


@pytest.fixture
def made(tmp_path):
    """Pixels of one batch of 6 images that a method makes in two iterations. Of tsz in one: which boxes an
    output stands for changes at once with a bit of the second gradient."""

    def made(name, folder, compile):
        iterations = 1 if name == "tsz" else 2
        return pixels_made(name, tmp_path / folder, count=6, batch=6, iterations=iterations, compile=compile)

    return made


def in_chunks(monkeypatch):
    """From now on at most two images at once; the list of chunked passes."""
    monkeypatch.setattr(chunked, "images_in_memory", lambda num_values: 2)
    called, apart = [], InChunks.__call__

    def noted(self, images):
        called.append(len(images))
        return apart(self, images)

    monkeypatch.setattr(InChunks, "__call__", noted)
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
