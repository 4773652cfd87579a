"""The loop over all batches of a group at once: each batch's loss sees the statistics of the whole set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zsq.contract import StepLog
from zsq.core.runtime import Runtime
from zsq.engine.finite import Guard, place_sums
from zsq.engine.invert import LossHistory, Tapped
from zsq.engine.objectives import TeacherPass, Term, weighted
from zsq.engine.outputs import PerImage
from zsq.engine.parameterise import MakeOptimizer, Optimised, Parameterisation, fused_adam
from zsq.engine.statistics import LayerSums, SetSums, input_sums
from zsq.engine.views import View, apply_views, draw_views


class StoredSums:
    """The latest sums of every batch, per layer: whole-set statistics without any other batch's graph."""

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        """Empty; `batch_sizes` in order."""
        self.batch_sizes = tuple(batch_sizes)
        self._sums: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batch_sizes]

    def store(self, batch: int, layers: Sequence[LayerSums]) -> None:
        """Replace batch `batch`'s sums."""
        self._sums[batch] = [(s.s1_NC.detach().sum(0), s.s2_NC.detach().sum(0)) for s in layers]

    def others(self, batch: int) -> list[SetSums]:
        """Per layer, the sums of all batches but `batch`; the order of addition is fixed."""
        rest = [index for index in range(len(self.batch_sizes)) if index != batch]
        count = sum(self.batch_sizes[index] for index in rest)
        totals = []
        for layer, (s1_C, s2_C) in enumerate(self._sums[batch]):
            s1 = [self._sums[index][layer][0] for index in rest]
            s2 = [self._sums[index][layer][1] for index in rest]
            totals.append(
                SetSums(
                    torch.stack(s1).sum(0) if rest else torch.zeros_like(s1_C),
                    torch.stack(s2).sum(0) if rest else torch.zeros_like(s2_C),
                    count,
                )
            )
        return totals


class WithInput:
    """A tapped teacher with the statistics of the images themselves before those of its layers."""

    def __init__(self, tapped: Tapped) -> None:
        """`names`: "input", then those of `tapped`."""
        self.tapped = tapped
        self.names = ["input", *tapped.names]

    def __call__(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        """As `Tapped`."""
        outputs, layers = self.tapped(standard_NCHW)
        return outputs, [input_sums(standard_NCHW), *layers]


class JointInversion:
    """Optimises all batches of a group in turns, one step each per iteration, against a frozen teacher."""

    def __init__(
        self,
        tapped: Tapped,
        parameterise: Callable[[int], Parameterisation],
        terms: Sequence[Term],
        views: Sequence[View],
        iterations: int,
        runtime: Runtime,
        optimizer: MakeOptimizer = fused_adam,
    ) -> None:
        """`parameterise` makes the parameterisation of a batch size; terms of weight 0 are left out."""
        self.tapped = tapped
        self.parameterise = parameterise
        self.terms = [term for term in terms if term.weight != 0]
        self.views = tuple(views)
        self.iterations = iterations
        self.runtime = runtime
        self.optimizer = optimizer
        self._step = runtime.compiled(self._losses)

    def _losses(
        self, images: Tensor, draws: list[Tensor], others: list[SetSums], targets_NK: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, list[LayerSums]]:
        viewed = apply_views(self.views, images, draws)
        with self.runtime.autocast():
            outputs, layers = self.tapped(viewed)
        forward = TeacherPass(viewed, outputs, layers, targets_NK, others=others)
        return *weighted(self.terms, forward), place_sums(forward), layers

    def run(
        self,
        batch_sizes: Sequence[int],
        generator: torch.Generator,
        log: StepLog,
        targets_NK: Tensor | None = None,
    ) -> tuple[list[Tensor], LossHistory]:
        """Every batch's last iterate, as the parameterisation gives it, on the device.

        Args:
            targets_NK: class probabilities asked of the images, in the order of the batches.

        Raises:
            NonFiniteError: a loss, or the images, became NaN or infinite.
        """
        images = [self.parameterise(size) for size in batch_sizes]
        targets = self._split(targets_NK, batch_sizes)
        for parameterisation in images:
            parameterisation.reset(generator)
        optimised = [Optimised(p, self.iterations, self.runtime.device, self.optimizer) for p in images]
        stored = StoredSums(batch_sizes)
        with torch.no_grad():
            for index, parameterisation in enumerate(images):
                stored.store(index, self._measured(parameterisation(), generator))
        history = LossHistory(tuple(term.name for term in self.terms))
        guard = Guard(history.names, self.tapped.names, self.runtime)
        for iteration in range(self.iterations):
            values = []
            for index, one in enumerate(optimised):
                shape = one.parameterisation().shape
                draws = self._draws(shape, generator)
                self.runtime.begin_step()
                one.optimizer.zero_grad()
                others, wanted_NK = stored.others(index), targets[index]
                total, losses, sums, layers = self._step(one.parameterisation(), draws, others, wanted_NK)
                guard.watch(iteration, total, losses, sums)
                total.backward()
                stored.store(index, layers)
                one.step(iteration, total.detach())
                values.append(losses.clone())
                # Else the next step would begin beside what this one holds.
                del total, losses, sums, layers, others
            history.note(iteration, self.iterations, values, sum(batch_sizes), log)
        made = [parameterisation().detach() for parameterisation in images]
        for batch in made:
            guard.finished(batch)
        return made, history

    def _split(self, targets_NK: Tensor | None, batch_sizes: Sequence[int]) -> Sequence[Tensor | None]:
        if targets_NK is None:
            return [None] * len(batch_sizes)
        return targets_NK.to(self.runtime.device).split(list(batch_sizes))

    def _draws(self, shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        return [self.runtime.sent(draw) for draw in draw_views(self.views, shape, generator)]

    def _measured(self, images: Tensor, generator: torch.Generator) -> list[LayerSums]:
        with self.runtime.autocast():
            _, layers = self.tapped(apply_views(self.views, images, self._draws(images.shape, generator)))
        return layers
