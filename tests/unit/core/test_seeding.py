"""Random streams: the same for the same key, unrelated for any other."""

import itertools
import zlib

import numpy as np
import pytest
import torch

from zsq.core.seeding import global_rng_of, numpy_generator, seed_sequence, torch_generator

KEYS = list(itertools.product([0, 1, 2**63 - 1], [0, 1, 999], ["images", "labels", "student"]))


def test_same_key_same_numbers():
    for key in KEYS:
        assert torch.equal(
            torch.rand(5, generator=torch_generator(*key)), torch.rand(5, generator=torch_generator(*key))
        )
        assert np.array_equal(numpy_generator(*key).random(5), numpy_generator(*key).random(5))


@pytest.mark.parametrize("draw", ["torch", "numpy"])
def test_other_keys_give_unrelated_numbers(draw):
    def normal(key):
        if draw == "torch":
            return torch.randn(4000, generator=torch_generator(*key)).double().numpy()
        return numpy_generator(*key).normal(size=4000)

    correlation = np.corrcoef([normal(key) for key in KEYS])
    off_diagonal = correlation[~np.eye(len(KEYS), dtype=bool)]
    # Correlations of independent streams have a standard deviation of 1 / sqrt(4000) = 0.016.
    assert np.abs(off_diagonal).max() < 5 * 0.016
    assert off_diagonal.std() == pytest.approx(0.016, rel=0.2)


def test_streams_are_numpys_seed_sequence_of_the_key():
    key = (7, 3, "images")
    sequence = np.random.SeedSequence(7, spawn_key=(3, zlib.crc32(b"images")))
    assert np.array_equal(seed_sequence(*key).generate_state(8), sequence.generate_state(8))
    assert np.array_equal(numpy_generator(*key).random(4), np.random.default_rng(sequence).random(4))


def test_numbers_are_fixed_across_versions():
    assert torch.randint(1000, (4,), generator=torch_generator(0, 0, "images")).tolist() == [
        133,
        877,
        331,
        238,
    ]
    assert seed_sequence(0, 0, "images").generate_state(2).tolist() == [1177428468, 52316015]


def test_global_state_is_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    torch.rand(3, generator=torch_generator(1, 2, "x"))
    numpy_generator(1, 2, "x").random(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])


def test_what_draws_from_the_global_generator_draws_from_a_given_one():
    before, own = torch.get_rng_state(), torch_generator(3, 0, "layers")
    for _ in range(2):
        with global_rng_of(own):
            assert torch.equal(torch.rand(4), torch.rand(4, generator=torch_generator(3, 0, "layers")))
    assert torch.equal(torch.get_rng_state(), before)
