"""Gradual magnitude pruning: more and more of the smallest weights become zero while a network is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zsq.passes.pruning import largest

# Times that the masks change, and the share of the training after which they stay: ours.
UPDATES = 20
END = 0.6


def sparsity_at(step: int, end: int, final: float) -> float:
    """The share of zeros at `step` of 0..`end`: final (1 - (1 - step / end)^3) (Zhu and Gupta 2017), and
    `final` from then on."""
    return final if step >= end else final * (1 - (1 - step / end) ** 3)


class Gradual:
    """Masks of weights that are trained. A masked weight is zero but keeps what it was and what its gradient
    adds; it has that again if it is among the largest before the masks are final."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        sparsity: float,
        together: bool,
        steps: int,
        fixed: Mapping[str, Tensor],
    ) -> None:
        """`weights` are masked in place from the first update on. `together`: in one order of magnitudes.
        Elements outside of `fixed` are zero, and somebody else keeps them so."""
        self.weights, self.sparsity, self.together = dict(weights), sparsity, together
        self.end, self.every = max(1, round(END * steps)), max(1, steps // UPDATES)
        self.step = 0
        self.dense = {name: weight.detach().clone() for name, weight in weights.items()}
        self.masks = {
            name: fixed[name].to(weight.device) if name in fixed else torch.ones_like(weight).bool()
            for name, weight in weights.items()
        }
        self.fixed = self.masks

    @torch.no_grad()
    def after_step(self) -> None:
        """Take what the optimiser changed, update the masks where it is time, and set weights to zero."""
        self.step += 1
        for name, weight in self.weights.items():
            # A masked weight was zero before the step, so that it is now what the step adds.
            self.dense[name] = torch.where(self.masks[name], weight, self.dense[name] + weight)
        if self.step == self.end or (self.step < self.end and self.step % self.every == 0):
            share = sparsity_at(self.step, self.end, self.sparsity)
            masks = largest(self.dense, share, self.together)
            self.masks = {name: mask & self.fixed[name] for name, mask in masks.items()}
        for name, weight in self.weights.items():
            weight.copy_(self.dense[name] * self.masks[name])
