"""Distribution correction: features that have, image by image, the statistics that batch norms store."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from zsq.graph.norms import stores_statistics
from zsq.placement.subgraphs import between
from zsq.placement.units import Unit

# Under the root of variances, as in the public code.
EPSILON = 1e-6
BATCH = 32
LEARNING_RATE, LEAST_RATE = 1e-3, 1e-5
PATIENCE = 100


@dataclass(frozen=True)
class Correction:
    """What enters a unit, moved towards what its batch norms store (PD-Quant, Liu et al. 2023).

    `read`: from the unit's input to what enters each of `norms`, a tuple.
    """

    read: fx.GraphModule
    norms: tuple[nn.modules.batchnorm._BatchNorm, ...]

    @classmethod
    def of(cls, unfolded: fx.GraphModule, student: fx.GraphModule, unit: Unit) -> Correction | None:
        """That of a unit of `student`, whose batch norms may be folded and are layers in `unfolded`; None
        where the unit has none.

        Both are graphs of one capture, so that nodes have the same names.
        """
        names = {node.name for node in student.graph.nodes}
        nodes = {node.name: node for node in unfolded.graph.nodes}

        def whole(name: str) -> fx.Node:
            """The node that gives the same value: the batch norm where one was folded into a layer."""
            node = nodes[name]
            users = list(node.users)
            folded = len(users) == 1 and users[0].name not in names and users[0].op == "call_module"
            return users[0] if folded else node

        start = whole(unit.input)
        inside, pending = {start}, [whole(unit.output)]
        found: list[fx.Node] = []
        while pending:
            node = pending.pop()
            if node in inside:
                continue
            inside.add(node)
            pending += node.all_input_nodes
            if node.op == "call_module" and stores_statistics(unfolded.get_submodule(str(node.target))):
                found.append(node)
        if not found:
            return None
        read = between(unfolded, start.name, [node.all_input_nodes[0].name for node in found])
        norms = tuple(unfolded.get_submodule(str(node.target)) for node in found)
        return cls(read, norms)  # type: ignore[arg-type]

    def loss(self, moved: Tensor, features: Tensor, distance_weight: float) -> Tensor:
        """Squared differences of mean and deviation of each channel from what is stored, summed over channels
        and norms, mean over images; and the squared distance from `features`, summed over channels, mean over
        images and positions.

        A map of one position has no deviation.
        """
        terms = []
        for norm, entering in zip(self.norms, self.read(moved), strict=True):
            values = entering.flatten(2) if entering.dim() > 2 else entering[..., None]
            assert norm.running_mean is not None and norm.running_var is not None
            terms.append((values.mean(2) - norm.running_mean).square().sum())
            if values.shape[2] > 1:
                deviation = (values.var(2) + EPSILON).sqrt()
                terms.append((deviation - (norm.running_var + EPSILON).sqrt()).square().sum())
        channels = features.shape[1] if features.dim() > 1 else 1
        distance = (moved - features).square().sum() * channels / features.numel()
        return torch.stack(terms).sum() / len(features) + distance_weight * distance

    @torch.enable_grad()
    def corrected(self, features: Tensor, iterations: int, distance_weight: float) -> Tensor:
        """`features` of some images after so many steps of Adam, whose rate falls where the loss stays."""
        moved = features.clone().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=PATIENCE, min_lr=LEAST_RATE
        )
        for _ in range(iterations):
            optimizer.zero_grad()
            loss = self.loss(moved, features, distance_weight)
            loss.backward()
            optimizer.step()
            schedule.step(loss.detach())
        return moved.detach()
