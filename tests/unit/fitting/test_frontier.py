"""Each value of a network is computed once on all images, however many units follow from it."""

import torch
from torch import nn
from toys import image_spec

from zsq.core.runtime import Runtime
from zsq.fitting.frontier import Frontier, Images
from zsq.graph import capture
from zsq.placement.subgraphs import up_to


class Forked(nn.Module):
    """Four layers, the first of which is also seen by the last."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, x):
        first = self.a(x)
        return self.d(self.c(self.b(first)) + first)


def counted(network):
    """How often each layer is called from now on."""
    calls = dict.fromkeys("abcd", 0)

    def hook(name):
        def count(*_):
            calls[name] += 1

        return count

    for name in calls:
        getattr(network, name).register_forward_hook(hook(name))
    return calls


def test_a_value_is_computed_once_and_kept_while_something_follows_from_it():
    spec = image_spec()
    network = capture(Forked(), torch.zeros(2, *spec.shape)).eval().requires_grad_(False)
    pixels = torch.randint(0, 256, (5, *spec.shape), dtype=torch.uint8)
    images = Images(spec, pixels, Runtime())
    names = {str(node.target): node.name for node in network.graph.nodes if node.op == "call_module"}
    (_, norm), *rest = images.batches()
    assert not rest
    wanted = dict(zip("abcd", up_to(network, [names[each] for each in "abcd"])(norm), strict=True))
    calls, frontier, index = counted(network), Frontier(network, images), torch.arange(5)
    for ahead in ("abcd", "bcd", "cd", "d"):
        frontier.keep([names[each] for each in ahead])
        (features,) = frontier.features([names[ahead[0]]])
        assert torch.equal(features.rows(index), wanted[ahead[0]])
    assert calls == dict.fromkeys("abcd", 1)
    assert set(frontier.known) == {names["a"], names["c"], names["d"]}
    frontier.keep([names["d"]])
    assert set(frontier.known) == {names["d"]}
