"""What holds for every student of the table, on the embedded digits."""

import copy

import pytest
import torch
from tiny_students import fit, outputs

from zsq.students import STUDENTS


@pytest.mark.parametrize("name", STUDENTS)
def test_eight_bits_are_within_a_point_of_float(digits, images, accuracy, name):
    before = copy.deepcopy(digits.network.state_dict())
    # Those that train the whole network first lose what they then regain.
    trained = "flip" in STUDENTS[name].options_class.model_fields
    options = {"iterations": 60, "flip": False} if trained else {}
    fitted = fit(name, digits, images, "W8A8", first_last=None, **options)
    assert accuracy(fitted) >= accuracy(digits) - 1
    after = digits.network.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", STUDENTS)
def test_the_seed_decides_and_nothing_else(digits, images, name):
    state = torch.get_rng_state()
    first, second = (fit(name, digits, images[:40], "W3A4", seed=5) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    logits = outputs(first, images)
    assert logits.isfinite().all()
    assert torch.equal(logits, outputs(second, images))
    tensors = second.network.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in first.network.state_dict().items())
    assert first.tensors == second.tensors and {row.kind for row in first.tensors} == {"weight", "activation"}
