"""HAQ (Wang et al. 2019, arXiv:1811.08886): an agent chooses the width of one row after another, and learns
from how far the network that comes out diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from zsq.core.seeding import torch_generator
from zsq.fitting.agent import Agent
from zsq.fitting.mixing import Choices, Costs, Part, Policy, neighbours
from zsq.placement.sites import Placement
from zsq.widths import MOST_BITS

# A divergence below it is none.
LEAST_DIVERGENCE = 1e-9


class Diverging(Protocol):
    """What says how far the outputs of a network are from the float network's."""

    def diverges(self, policy: Policy) -> float:
        """With all rows at these widths."""


@dataclass(frozen=True)
class Search:
    """For widths among `choices` within `limit`. `reference`: the divergence that counts as no reward."""

    costs: Costs
    choices: Choices
    limit: float
    network: Diverging
    reference: float

    def run(self, features: Mapping[str, Tensor], start: Policy, episodes: int, seed: int) -> dict[str, int]:
        """`start` with the widths of the episode that diverged least; rows are visited in the order of
        `features`."""
        first = next(iter(features.values()))
        agent = Agent(len(first) + 1, len(features), torch_generator(seed, 0, "haq"))
        best: tuple[float, dict[str, int]] | None = None
        for _ in range(episodes):
            policy, states, actions = dict(start), [], []
            before = 1.0
            for row, known in features.items():
                states.append(torch.cat([known, torch.tensor([before])]))
                actions.append(agent.choose(states[-1]))
                policy[row] = chosen(self.choices[row], actions[-1])
                before = policy[row] / MOST_BITS
            policy = self.within(policy, list(features))
            reward = self.reward(self.network.diverges(policy))
            if best is None or reward > best[0]:
                best = reward, policy
            agent.learn(torch.stack(states), actions, reward)
        assert best is not None
        return best[1]

    def reward(self, divergence: float) -> float:
        """By how many times `divergence` is below the reference, as a logarithm."""
        return math.log(max(self.reference, LEAST_DIVERGENCE) / max(divergence, LEAST_DIVERGENCE))

    def within(self, policy: Policy, rows: Sequence[str]) -> dict[str, int]:
        """`policy` with one row after another narrowed, from the last to the first and then again, until the
        cost is at most the limit or nothing is left to narrow."""
        found = dict(policy)
        while self.costs.of(found) > self.limit and neighbours(self.choices, found, -1):
            for row in reversed(rows):
                if self.costs.of(found) <= self.limit:
                    break
                found |= neighbours({row: self.choices[row]}, found, -1)
        return found


def chosen(widths: Sequence[int], action: float) -> int:
    """The width that a number in 0..1 stands for, each with an equal share of it."""
    return widths[min(int(action * len(widths)), len(widths) - 1)]


def features_of(placement: Placement, parts: Sequence[Part], choices: Choices) -> dict[str, Tensor]:
    """What the agent knows of each row, in the order of execution, a layer's weight before its input: whether
    its layer is depthwise, channels in and out, stride, kernel, number of weights, how often each is used,
    which row it is, whether it is an input. Each scaled to 0..1 over all rows; of products, zeros."""
    found: dict[str, list[float]] = {}
    for part in parts:
        for is_input, row in enumerate((part.left, part.right)):
            if isinstance(row, str) and row in choices and row not in found:
                uses = part.macs / part.num_weights if part.num_weights else 0.0
                layer = _layer_features(placement.network, part.name) if part.num_weights else [0.0] * 5
                found[row] = [*layer, float(part.num_weights), uses, float(len(found)), float(is_input)]
    table = torch.tensor(list(found.values()))
    low, high = table.amin(0), table.amax(0)
    scaled = (table - low) / (high - low).clamp(min=torch.finfo(table.dtype).tiny)
    return dict(zip(found, scaled, strict=True))


def _layer_features(network: nn.Module, name: str) -> list[float]:
    layer = network.get_submodule(name)
    if isinstance(layer, nn.modules.conv._ConvNd):
        depthwise = layer.groups > 1 and layer.groups == layer.in_channels
        sizes = (layer.in_channels, layer.out_channels, layer.stride[0], layer.kernel_size[0])
        return [float(depthwise), *map(float, sizes)]
    assert isinstance(layer, nn.Linear)
    return [0.0, float(layer.in_features), float(layer.out_features), 1.0, 1.0]
