"""One weight under two layers, and one layer that is called twice."""

import pytest
import torch
from torch import nn

from zsq.core.errors import UntraceableError
from zsq.placement.sites import place
from zsq.widths import Bits

IMAGES = torch.zeros(2, 3, 16, 16)


class SharedWeight(nn.Module):
    def __init__(self, convolutions):
        super().__init__()
        make = (lambda: nn.Conv2d(3, 3, 3, padding=1)) if convolutions else (lambda: nn.Linear(4, 4))
        self.first, self.second = make(), make()
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("convolutions", [False, True])
def test_two_layers_over_one_weight_are_refused_in_one_line(convolutions):
    with pytest.raises(UntraceableError, match=r"'first' and 'second' share one weight.*second\.weight = nn"):
        example = IMAGES if convolutions else torch.zeros(2, 4)
        place(SharedWeight(convolutions), example, Bits(4, 4), fold=True)


def test_a_layer_that_is_called_twice_is_quantized_once():
    class Twice(SharedWeight):
        def forward(self, x):
            return self.first(torch.relu(self.first(x)))

    placement = place(Twice(True), IMAGES, Bits(4, 4), fold=False)
    assert [site.name for site in placement.of_kind("weight")] == ["first.weight"]
