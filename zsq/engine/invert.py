"""The loop: parameterisation -> view -> tapped teacher -> terms -> step."""

from __future__ import annotations

import itertools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from zsq.contract import Generator, StepLog, SyntheticBatch, Teacher
from zsq.core.runtime import Runtime
from zsq.engine.attention import AttentionTeacher, attention_bytes
from zsq.engine.executed import FeatureTap
from zsq.engine.finite import Guard, place_sums
from zsq.engine.memories import Memory
from zsq.engine.objectives import TeacherPass, Term, nothing, weighted
from zsq.engine.outputs import PerImage
from zsq.engine.parameterise import Optimised, Parameterisation
from zsq.engine.statistics import LayerSums
from zsq.engine.views import View, apply_views, draw_views
from zsq.plan import Group


class Tapped(Protocol):
    """A teacher whose layers are measured, as `TappedTeacher` is one."""

    names: list[str]

    def __call__(self, standard_NCHW: Tensor, /) -> tuple[PerImage, list[LayerSums]]:
        """Standard-space images -> the teacher's outputs and the statistics of the layers `names`."""


LOG_EVERY = 25  # iterations between host reads of the losses


# The total loss, each term's value, `place_sums`, and the teacher pass where a memory learns from it.
Step = tuple[Tensor, Tensor, Tensor, TeacherPass | None]


@dataclass(frozen=True)
class Stage:
    """Consecutive iterations with one view, and with fresh optimizer state and schedule unless `continues`:
    then with those of the stage before. `terms` stand in place of some of the inversion's; others are 0.
    `passes`: of each image through the teacher in a step, whose views show it so often."""

    iterations: int
    views: tuple[View, ...] = ()
    terms: tuple[Term, ...] | None = None
    continues: bool = False
    passes: int = 1


@dataclass
class LossHistory:
    """Values of each term at the logged iterations, on the device until asked for."""

    names: tuple[str, ...]
    rows: list[Tensor] = field(default_factory=list)

    def note(
        self, iteration: int, iterations: int, values: Sequence[Tensor], images: int, log: StepLog
    ) -> None:
        """At every `LOG_EVERY`th of `iterations` and at the last: keep the mean of the batches' values and
        advance `log` by what `images` images went through since."""
        done = iteration + 1
        if done % LOG_EVERY == 0 or done == iterations:
            self.rows.append(torch.stack(list(values)).mean(0))
            log.advance(images * (iteration % LOG_EVERY + 1), **self.last())

    def last(self) -> dict[str, float]:
        """Name -> latest value."""
        return dict(zip(self.names, self.rows[-1].tolist(), strict=True))

    def idle(self) -> list[str]:
        """Terms that never changed over at least two logged iterations: they steer nothing."""
        if len(self.rows) < 2:
            return []
        table = torch.stack(self.rows)
        return [name for name, column in zip(self.names, table.T, strict=True) if (column == column[0]).all()]


def warn_of_idle_terms(owner: str, history: LossHistory) -> None:
    """One warning for each loss term that never changed."""
    for term in history.idle():
        warnings.warn(f"{owner}: loss term '{term}' never changed: it steers nothing", stacklevel=3)


class Inversion:
    """Optimises one batch after another against a frozen teacher; the compiled step is reused."""

    def __init__(
        self,
        tapped: Tapped,
        parameterisation: Parameterisation,
        terms: Sequence[Term],
        stages: Sequence[Stage],
        runtime: Runtime,
        features: FeatureTap | None = None,
        memories: Sequence[Memory] = (),
        attention: AttentionTeacher | None = None,
    ) -> None:
        """`parameterisation` and `terms` stand for one batch size; terms of weight 0 are left out.

        features: hooked on `tapped`, for terms that read them. memories: called around each step. attention:
        `tapped` itself, for terms that read its attention.
        """
        self.tapped = tapped
        self.parameterisation = parameterisation
        self.terms = [term for term in terms if term.weight != 0]
        self.stages = [stage for stage in stages if stage.iterations > 0]
        self.runtime = runtime
        self.features = features
        self.memories = tuple(memories)
        self.attention = attention
        self._steps = [runtime.compiled(self._step(stage)) for stage in self.stages]

    def _step(self, stage: Stage) -> Callable[..., Step]:
        terms = self.terms if stage.terms is None else stage.terms
        by_name = {term.name: term for term in terms if term.weight != 0}
        terms = [by_name.get(term.name, Term(term.name, 0.0, nothing)) for term in self.terms]

        def step(draws: list[Tensor], targets_NK: Tensor | None) -> Step:
            images = apply_views(stage.views, self.parameterisation(), draws)
            with self.runtime.autocast():
                outputs, layers = self.tapped(images)
            features = self.features.take() if self.features else None
            blocks = self.attention.take() if self.attention else ()
            forward = TeacherPass(images, outputs, layers, targets_NK, features_NF=features, blocks=blocks)
            return *weighted(terms, forward), place_sums(forward), forward if self.memories else None

        return step

    def run(
        self, generator: torch.Generator, targets_NK: Tensor | None, log: StepLog
    ) -> tuple[Tensor, LossHistory]:
        """One batch from its start to its last iterate: (N, C, H, W) in standard space, on the device.

        Raises:
            NonFiniteError: a loss, or the images, became NaN or infinite.
        """
        device = self.runtime.device
        self.parameterisation.reset(generator)
        history = LossHistory(tuple(term.name for term in self.terms))
        guard = Guard(history.names, self.tapped.names, self.runtime)
        targets_NK = targets_NK.to(device) if targets_NK is not None else None
        taken = begun = 0  # steps of the run, and before the optimizer at hand
        for index, (stage, step) in enumerate(zip(self.stages, self._steps, strict=True)):
            if index == 0 or not stage.continues:
                optimised, begun = Optimised(self.parameterisation, self._length(index), device), taken
            shape = self.parameterisation().shape
            for iteration in range(stage.iterations):
                drawn = draw_views(stage.views, shape, generator, iteration / stage.iterations)
                draws = [self.runtime.sent(draw) for draw in drawn]
                targets_NK = self.parameterisation.redraw(generator, targets_NK)
                for memory in self.memories:
                    memory.before_step(taken, generator)
                self.runtime.begin_step()
                optimised.optimizer.zero_grad()
                total, values, sums, forward = step(draws, targets_NK)
                guard.watch(iteration, total, values, sums)
                total.backward()
                optimised.step(taken - begun, total.detach())
                for memory in self.memories:
                    assert forward is not None
                    with torch.no_grad():
                        memory.after_step(taken, forward)
                taken += 1
                # Else the next step would begin beside what this one holds.
                del total, sums, forward
                history.note(iteration, stage.iterations, [values], stage.passes * shape[0], log)
        with torch.no_grad():
            images = self.parameterisation().detach().clone()
        guard.finished(images)
        return images, history

    def _length(self, first: int) -> int:
        """Iterations of a stage and of those that continue it."""
        rest = itertools.takewhile(lambda stage: stage.continues, self.stages[first + 1 :])
        return self.stages[first].iterations + sum(stage.iterations for stage in rest)


class InversionMethod(Generator):
    """A method that is an `Inversion` per batch: a subclass says which, and which labels it asks for."""

    def __init__(self, teacher: Teacher, options: Any, runtime: Runtime) -> None:
        """Keep the parts."""
        super().__init__(teacher, options, runtime)
        self._inversions: dict[Hashable, Inversion] = {}

    def network_bytes(self, batch: int) -> int:
        """What attention takes, where the method reads it: no layer puts it out."""
        return attention_bytes(self.teacher, batch) if self.facts.needs_attention else 0

    @abstractmethod
    def inversion(self, batch: int) -> Inversion:
        """The composition for batches of this size."""

    def labels(self, group: Group) -> Tensor | None:
        """(num_images, K) class probabilities to ask for; None for a method without a class term."""
        return None

    def variant(self, batch: int) -> Hashable:
        """What tells the next batch's composition from others; equal variants share one inversion."""
        return batch

    def begin(self, group: Group) -> None:
        """Called before the group's first batch: nothing of other groups may be remembered."""

    def finished(self, images_NCHW: Tensor, targets_NK: Tensor | None) -> None:
        """Called with each finished batch, for methods whose later batches depend on it."""

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Invert the group's batches one after another, all from the group's own stream."""
        self.begin(group)
        targets_NK = self.labels(group)
        rng = group.generator("synthesis")
        images: list[Tensor] = []
        first = 0
        for batch in group.batch_sizes:
            wanted = targets_NK[first : first + batch] if targets_NK is not None else None
            made, history = self._inversion(batch).run(rng, wanted, log)
            self.finished(made, wanted)
            images.append(made.cpu())
            first += batch
            warn_of_idle_terms(self.name, history)
        return SyntheticBatch(torch.cat(images), targets_NK, history.last() if history.rows else {})

    def _inversion(self, batch: int) -> Inversion:
        variant = self.variant(batch)
        if variant not in self._inversions:
            self._inversions[variant] = self.inversion(batch)
        return self._inversions[variant]
