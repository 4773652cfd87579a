"""SARDFQ (ICCV 2025): attention follows a random map, and an image holds patches of several classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Teacher
from zsq.core.runtime import Runtime
from zsq.engine.attention import AttentionTeacher
from zsq.engine.heads import AttentionPriors
from zsq.engine.invert import Inversion, Stage
from zsq.engine.memories import on_images
from zsq.engine.objectives import TeacherPass, Term
from zsq.engine.targets import class_count
from zsq.engine.variation import DEVIATIONS, VariationMethod, VariationOptions
from zsq.engine.views import PatchZoom
from zsq.plan import Group

QUARTERS = 4


class SARDFQOptions(VariationOptions):
    """What is published, and PSAQ-ViT's where nothing is; `prior_weight` is ours, of the published range 1 to
    100,000 that is searched for each network; docs/research-log.md says what was tried.

    low, high: range of the logits asked for at the classes that an image should show; 0 at the others.
    """

    prior_weight: float = Field(100.0, ge=0)
    components: int = Field(5, ge=1)
    low: float = Field(5.0, ge=0)
    high: float = Field(10.0, ge=0)


@dataclass(frozen=True)
class Asked:
    """What is asked of a batch: of each image `counts_N` of its quarters, in the order `quarters_N4`, show a
    class of their own with the probabilities `patches_N4K`."""

    counts_N: Tensor
    quarters_N4: Tensor
    patches_N4K: Tensor


class Patches:
    """A memory: which patch of each image is shown in this step, and what is asked of it."""

    def __init__(self, batch: int, num_classes: int, device: str) -> None:
        """Nothing is asked yet."""
        self.targets_NK = torch.zeros(batch, num_classes, device=device)
        self.asked: Asked | None = None
        self._shown = torch.empty(0)

    def quarters(self, generator: torch.Generator) -> Tensor:
        """(N,) one of each image's patches."""
        assert self.asked is not None
        counts_N = self.asked.counts_N
        self._shown = (torch.rand(len(counts_N), generator=generator) * counts_N).long()
        return self.asked.quarters_N4.gather(1, self._shown[:, None])[:, 0]

    def before_step(self, iteration: int, generator: torch.Generator) -> None:
        """Ask for the classes of the patches that were drawn."""
        assert self.asked is not None
        self.targets_NK.copy_(self.asked.patches_N4K[torch.arange(len(self._shown)), self._shown])

    def after_step(self, iteration: int, forward: TeacherPass) -> None:
        """Nothing is learned."""

    def loss(self, forward: TeacherPass) -> Tensor:
        """Mean cross-entropy of the images, and of their patches behind them."""
        assert forward.targets_NK is not None
        targets = torch.cat([forward.targets_NK, self.targets_NK])
        return F.cross_entropy(forward.logits_NK, targets)


class SARDFQ(VariationMethod):
    """Pixels; attention close to random maps, patches that show other classes, soft targets, TV."""

    name = "sardfq"
    options_class = SARDFQOptions
    facts = Facts(
        paper="Semantics-aligned and reinforced data-free quantization of vision transformers, ICCV 2025",
        summary="attention follows random maps, patches show classes of their own, soft targets, variation",
        needs_labels=True,
        needs_attention=True,
        deviations=(
            *DEVIATIONS,
            "written from a summary: learning rate, views, total variation and the maps' constants are ours",
            "one of an image's one to four patches, all quarters, is shown in each step, not all of them",
            "an image is asked to show its own class and those of its patches",
        ),
    )

    def __init__(self, teacher: Teacher, options: Any, runtime: Runtime) -> None:
        """Keep the parts."""
        super().__init__(teacher, options, runtime)
        self._patches: dict[int, Patches] = {}

    @classmethod
    def teacher_passes(cls, options: Any, count: int) -> int:
        """An image and its patch in every step."""
        return 2 * options.iterations * count

    def labels(self, group: Group) -> Tensor:
        """Soft targets of several classes; what is asked of the patches is kept for the group's one batch."""
        rng, (low, high) = group.generator("labels"), (self.options.low, self.options.high)
        count, num_classes = group.num_images, class_count(self.teacher, self.name)
        counts_N = torch.randint(1, QUARTERS + 1, (count,), generator=rng)
        quarters_N4 = torch.rand(count, QUARTERS, generator=rng).argsort(1)
        classes_N5 = torch.randint(num_classes, (count, QUARTERS + 1), generator=rng)
        logits_N5 = low + (high - low) * torch.rand(count, QUARTERS + 1, generator=rng)
        logits_N5K = F.one_hot(classes_N5, num_classes) * logits_N5[..., None]
        patches = self._asked(count)
        patches.asked = Asked(counts_N, quarters_N4, logits_N5K[:, 1:].softmax(2))
        shown_N5 = torch.arange(QUARTERS + 1) <= counts_N[:, None]
        return (logits_N5K * shown_N5[..., None]).amax(1).softmax(1)

    def _asked(self, batch: int) -> Patches:
        if batch not in self._patches:
            num_classes = class_count(self.teacher, self.name)
            self._patches[batch] = Patches(batch, num_classes, self.runtime.device)
        return self._patches[batch]

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective."""
        o, patches = self.options, self._asked(batch)
        tapped = AttentionTeacher(self.teacher, ("weights",), self.name)
        variation = self.variation(batch)
        priors = AttentionPriors(tapped.blocks, 2 * batch, self.runtime.device, o.components)
        terms = [
            Term("prior", o.prior_weight, priors.loss),
            Term("ce", o.ce_weight, patches.loss),
            Term("tv", o.tv_weight, on_images(variation.loss, _images)),
        ]
        return Inversion(
            tapped,
            self.pixels(batch),
            terms,
            [Stage(o.iterations, (PatchZoom(patches.quarters), *self.moved(o.jitter)), passes=2)],
            self.runtime,
            memories=[variation, priors, patches],
            attention=tapped,
        )


def _images(rows: int) -> slice:
    """The images, which stand before their patches."""
    return slice(rows // 2)
