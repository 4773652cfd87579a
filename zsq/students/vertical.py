"""One training for weights of any width: those of fewer bits are prefixes of those of eight."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from zsq.contract import Facts, Fit, FittedStudent
from zsq.core.errors import OptionError
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.calibration import observe
from zsq.fitting.learned_steps import learned_activation, learned_weight, with_learned_steps
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import Course, TrainingOptions
from zsq.placement.sites import Placement, Site, placement_of
from zsq.quantizers.nested import Ladder, LearnedNested, LearnedSteps
from zsq.widths import FLOAT_BITS, MOST_BITS, Bits, GridWidth, WidthOrFloat


class VerticalOptions(TrainingOptions):
    """Every second step trains 8 bits, the others a width k from `least` on, drawn at odds of 1 / (k - 1)."""

    iterations: int | None = Field(320, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    step_learning_rate: float = Field(1e-2, gt=0)
    temperature: float = Field(4.0, gt=0)
    least: GridWidth = 2
    # Statistics are shared by all widths, which would pull them apart.
    batch_norm: Literal["frozen"] = "frozen"
    # Where --first-last does not say; these rows have one width.
    first_last: WidthOrFloat | None = MOST_BITS


class Vertical(TrainedStudent):
    """Fits of one student object on the same images at the same seed train once, whatever their widths.
    Inputs have the weights' width where both are asked alike, else the asked one beside every width."""

    name = "vertical"
    facts = Facts(
        paper="Vertical layering of quantized networks, Wu et al. 2022 (arXiv:2212.05326)",
        summary="one training for all widths: weights of fewer bits are prefixes of those of 8 bits",
        deviations=(
            "only the abstract was read: floor and middle, a learned scale per width and channel, the draw "
            "of widths and all settings are ours",
            "one width in each step, and all follow the teacher; published is one objective over all widths",
            "batch norm keeps the teacher's statistics at every width",
            "rows with a width of their own, and the first and last layer, are not nested: learned steps",
            "KL to the teacher at T = 4, without labels; of other tasks, the task's own loss",
        ),
    )
    options_class: ClassVar[type[Options]] = VerticalOptions
    options: VerticalOptions
    form = "nested"
    takes_tasks = True
    step_work = 1.4

    def __init__(self, options: VerticalOptions, runtime: Runtime) -> None:
        """Nothing is trained yet."""
        super().__init__(options, runtime)
        self._trained: tuple[tuple[Any, ...], FittedStudent] | None = None

    def check_bits(self, bits: Bits, first_last: int | None) -> None:
        """Refuse prefixes shorter than those that are trained, too.

        Raises:
            OptionError: also for that.
        """
        super().check_bits(bits, first_last)
        if bits.weights < self.options.least:
            found = f"{bits.uniform} with student {self.name} and least={self.options.least}"
            raise OptionError(found, f"least={bits.weights}, or W{self.options.least} and more")

    def training_key(self, bits: Bits, first_last: int | None) -> Hashable:
        """Of what is placed, whatever prefix is read off it."""
        first_last = self.first_last_bits(first_last)
        return _marked(bits, first_last), first_last

    def run(self, fit: Fit) -> FittedStudent:
        """Train, unless the last fit has done so, and read the asked widths off the result."""
        pixels = fit.pixels_NCHW.cpu().contiguous()
        images = hashlib.sha256(pixels.numpy().data).digest()
        marked = replace(fit, bits=_marked(fit.bits, fit.first_last))
        key = (fit.teacher.network, images, self.training_key(fit.bits, fit.first_last), fit.seed)
        if self._trained is None or self._trained[0] != key:
            self._trained = None
            self._trained = key, super().run(marked)
        else:
            fit.log.advance(round(self.images_trained(fit.teacher, len(pixels), fit.bits)))
        placement = _read(placement_of(self._trained[1]), marked.bits, fit.bits)
        return self.result(fit, placement.network, placement.table())

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Nested weights of the largest magnitude; steps of the least error, of each width."""
        widths = range(self.options.least, MOST_BITS + 1)
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site in placement.of_kind("weight"):
            weight = placement.weight(site)
            nested = _is_nested(site, fit.bits)
            placement.put(
                site, LearnedNested(weight, widths) if nested else learned_weight(weight, site.bits)
            )
        for site, histogram in found.items():
            if _is_nested(site, fit.bits):
                grids = [learned_activation(histogram, width) for width in widths]
                placement.put(site, LearnedSteps(grids, widths))
            else:
                placement.put(site, learned_activation(histogram, site.bits))

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As every student, with a learning rate for scales and steps, and a width for each step."""
        options = self.options
        ladders = [part for part in placement.network.modules() if isinstance(part, Ladder)]
        factors = [ladder.factor for ladder in ladders]
        course = replace(super().course(placement, fit), before_step=self._draws(ladders, fit))
        return with_learned_steps(course, placement, options.step_learning_rate, options.optimizer, factors)

    def _draws(self, ladders: list[Ladder], fit: Fit) -> Callable[[int], None]:
        least = self.options.least
        # On training images of a CIFAR ResNet-20 it agreed better at all widths than drawing all at odds.
        odds = 1 / (torch.arange(least, max(MOST_BITS, least + 1)) - 1.0)
        steps = max(self.options.steps(len(fit.pixels_NCHW)), 1)
        generator = torch_generator(fit.seed, 0, "vertical widths")
        drawn = torch.multinomial(odds, steps, replacement=True, generator=generator).tolist()

        def choose(step: int) -> None:
            for ladder in ladders:
                ladder.choose(drawn[step - 1] if step % 2 else MOST_BITS - least)

        return choose


def _marked(bits: Bits, first_last: int | None) -> Bits:
    """What is placed for a training: nested rows have a width that no other row has. Inputs are nested where
    they are asked the weights' width."""
    if bits.weights == FLOAT_BITS:
        return bits
    alike = bits.weights == bits.activations
    others = (first_last, None if alike else bits.activations)
    mark = next(width for width in range(MOST_BITS, 0, -1) if width not in others)
    return replace(bits, weights=mark, activations=mark if alike else bits.activations)


def _is_nested(site: Site, marked: Bits) -> bool:
    return site.bits == marked.weights and site.name not in marked.rows


@torch.no_grad()
def _read(placement: Placement, marked: Bits, asked: Bits) -> Placement:
    """The student of the widths asked for, in place of the one that was trained."""
    sites = []
    for site in placement.sites:
        quantizer = placement.get(site)
        if _is_nested(site, marked):
            site = replace(site, bits=asked.weights)
            if isinstance(quantizer, LearnedNested):
                weight, quantizer = quantizer.settled(placement.weight(site), asked.weights)
                placement.weight(site).copy_(weight)
            elif isinstance(quantizer, LearnedSteps):
                quantizer = quantizer.settled(asked.weights)
            placement.put(site, quantizer)
        sites.append(site)
    return Placement(placement.network, tuple(sites))
