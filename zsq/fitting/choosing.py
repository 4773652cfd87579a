"""How a controller learns which width each image gets, and what its choices cost."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zsq.contract import FittedStudent
from zsq.fitting.calibration import norm_batches
from zsq.placement.choices import MASKS, SCORES, TRAINED_MASKS, named
from zsq.placement.subgraphs import up_to

# Halvings of the interval in which the change of the scores is looked for.
HALVINGS = 30
LARGEST_CHANGE = 100.0


class Chooser(nn.Module):
    """Masks of the largest score; gradients as if they were softmax(scores / temperature) (Gumbel-softmax,
    straight through, Jang et al. 2017). Batches of the training's size get the noise of `draw`."""

    noise: Tensor

    def __init__(self, batch: int, layers: int, widths: int, temperature: float) -> None:
        """Without noise so far."""
        super().__init__()
        self.temperature = temperature
        self.register_buffer("noise", torch.zeros(batch, layers, widths), persistent=False)

    def forward(self, scores_NLK: Tensor) -> Tensor:
        """(N, layers, widths), of every row one 1 and else 0."""
        noisy = scores_NLK + self.noise if len(scores_NLK) == len(self.noise) else scores_NLK
        soft = F.softmax(noisy / self.temperature, dim=-1)
        hard = F.one_hot(noisy.argmax(-1), scores_NLK.shape[-1]).to(soft.dtype)
        return hard + (soft - soft.detach())

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """New Gumbel noise."""
        uniform = torch.rand(self.noise.shape, generator=generator).clamp(min=1e-20)
        self.noise.copy_(-(-uniform.log()).clamp(min=1e-20).log())


class WidthCosts(nn.Module):
    """Bit operations of the layers that choose and of the controller, over those at the asked bits."""

    costs: Tensor
    own: Tensor

    def __init__(self, costs_LK: Tensor, own: float) -> None:
        """`costs_LK` of each layer at each width, `own` of the controller."""
        super().__init__()
        self.register_buffer("costs", costs_LK, persistent=False)
        self.register_buffer("own", torch.tensor(own), persistent=False)

    def forward(self, masks_NLK: Tensor) -> Tensor:
        """(N,): of each image."""
        return (masks_NLK * self.costs).sum((1, 2)) + self.own


def with_cost(network: fx.GraphModule, costs: str) -> fx.GraphModule:
    """The same network, over the same tensors, that returns (outputs, what its module `costs` makes of the
    masks)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs = graph.graph_copy(network.graph, copies)
    cost = graph.call_module(costs, (copies[named(network, TRAINED_MASKS)],))
    graph.output((outputs, cost))
    return fx.GraphModule(network, graph)


@torch.no_grad()
def scores_of(network: fx.GraphModule, norm_batches: Iterable[Tensor]) -> Tensor:
    """(N, layers, widths) scores of the controller, on the CPU."""
    controller = up_to(network, (SCORES,))
    return torch.cat([controller(norm)[0].float().cpu() for norm in norm_batches])


@torch.no_grad()
def masks_of(network: fx.GraphModule, norm_batches: Iterable[Tensor]) -> Tensor:
    """(N, layers, widths): which image picked which width, on the CPU."""
    controller = up_to(network, (MASKS,))
    return torch.cat([controller(norm)[0].cpu() for norm in norm_batches])


def shares_on(fitted: FittedStudent, pixels_NCHW: Tensor) -> dict[str, float]:
    """As `FittedStudent.shares`, of uint8 images of its spec; empty of a student without choices."""
    if not fitted.shares:
        return {}
    assert isinstance(fitted.network, fx.GraphModule)
    batches = norm_batches(fitted.spec, pixels_NCHW, fitted.device)
    shares = masks_of(fitted.network, batches).mean(0).flatten().tolist()
    return dict(zip(fitted.shares, shares, strict=True))


def change_within_budget(scores_NLK: Tensor, costs: WidthCosts, shifts: Tensor) -> Tensor:
    """What to add to the scores of each width so that the images cost 1 at most on average: 0 where they do
    already, else a multiple of `shifts` against them, as small as is enough."""

    def cost(factor: float) -> float:
        best = (scores_NLK - factor * shifts).argmax(-1)
        return costs(F.one_hot(best, scores_NLK.shape[-1]).float()).mean().item()

    low, high = 0.0, LARGEST_CHANGE
    if cost(low) <= 1:
        return torch.zeros_like(shifts)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= 1 else (middle, high)
    return -high * shifts
