"""What holds for every student of the table, on the embedded digits."""

import copy

import pytest
import torch
from tiny_students import fit

from zsq.students import STUDENTS


@pytest.fixture(scope="module")
def of_float(digits, accuracy):
    return accuracy(digits)


@pytest.mark.parametrize("name", STUDENTS)
def test_eight_bits_are_within_a_point_of_float(digits, images, accuracy, of_float, name):
    before = copy.deepcopy(digits.network.state_dict())
    # Those that train the whole network first lose what they then regain.
    trained = "flip" in STUDENTS[name].options_class.model_fields
    options = {"iterations": 60, "flip": False} if trained else {}
    fitted = fit(name, digits, images[:128], "W8A8", first_last=None, **options)
    assert accuracy(fitted) >= of_float - 1
    after = digits.network.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
