"""What a softmax gives has no values below zero: half of a signed grid would be lost on it."""

import dataclasses

import pytest
import torch
from tiny_students import digits_vit, fit
from toys import structured_images

from zsq.placement.policies import softmax_sites
from zsq.placement.sites import place
from zsq.teacher.digits_vit import DigitsViT
from zsq.widths import Bits


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DigitsViT(width=16, depth=1, hidden=24)
    return dataclasses.replace(digits_vit(), name="small", network=network)


@pytest.mark.parametrize("name", ["ptq", "genie-m", "brecq", "lsq-kd", "gdfq-ft", "qfd"])
def test_grids_of_softmax_outputs_have_next_to_nothing_below_zero(name, teacher):
    """Of learned intervals an end may have moved a little."""
    placement = place(teacher.network, teacher.example(), Bits(4, 4), fold=True)
    (site,) = softmax_sites(placement)
    assert site.name == "blocks.0.attn.matmul1.left"
    pixels = teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))
    fitted = fit(name, teacher, pixels)
    ends = torch.tensor([-1e3, 1e3])
    low, high = fitted.network.get_submodule(site.path)(ends).tolist()
    assert -0.02 * high <= low < high
    low, high = fitted.network.get_submodule("blocks.0.attn.matmul.left_quantizer")(ends).tolist()
    assert low < -0.3 * high
